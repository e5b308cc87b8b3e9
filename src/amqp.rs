//! RabbitMQ: connections, channels, consumers and confirmed publishing.

pub mod client;
pub mod confirm;
pub mod connection;
pub mod dead_letter_queue;
pub mod delivery;
pub mod management;
pub mod parked_queue;
pub mod probe;
pub mod publisher;
pub mod session;
pub mod session_end;
mod socket_guard;
pub mod tls;
pub mod topology;
