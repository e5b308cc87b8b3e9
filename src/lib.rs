//! `redeemer` consumes redemption commands from RabbitMQ, makes the signed WeChat Pay v3 call that uses a user's product
//! coupon, and publishes a result event with the coupon's state.
//!
//! # Data flow
//! ```text
//! bytes -> Redemption -> Step::Send -> wait -> sign, send -> CallResult -> Verdict -> Step … -> Step::Finish(Outcome)
//!       -> Event -> Published -> ack(Delivery, Published)
//! ```
//! Only [`runtime`] waits, calls, publishes and acknowledges. Between these, every function is total over plain values.
//!
//! # What the types rule out
//! * An acknowledgement without a confirmed publish: [`amqp::delivery::Delivery::ack`] takes a
//!   [`amqp::confirm::Published`], which only a confirmed publish makes.
//! * Settling twice: a [`amqp::delivery::Delivery`] is consumed by settling.
//! * Another body for the same command: [`wechat::client::Prepared`] is written once and borrowed by every attempt.
//! * A signature used twice: [`wechat::sign::Signed`] is consumed by sending.
//! * A success without a signature: [`policy::classify::classify`] reads success only from a verified response.
//!
//! # What is absent
//! No database: the broker holds what must survive, and the payment API is queried for the truth. No recovery by the
//! broker's client and no retries by the HTTP client: both are decided here, in one place each ([`runtime::supervisor`],
//! [`policy::attempt`]). No guess: if the truth cannot be found out, the outcome is `unresolved`.
//!
//! # Layers
//! A module uses only those above it in this list; `tests/architecture.rs` checks it.

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
