//! The admin port: metrics, health, the status page and the operator console.

pub mod console;
mod history;
mod host;
pub mod server;
mod status_page;
