//! Ports for what must know its port beforehand, or must come back on the same one.
//!
//! They lie below the range from which the kernel takes client ports and ports that nobody asked for by number, and above
//! the nodes of `deploy/local/rabbitmq`: nobody but another caller of this function is given one. Callers differ by where
//! they begin; a port that is open already is left out.
#![allow(clippy::unwrap_used)] // a test without a port fails

use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

const FROM: u16 = 31_300;
const COUNT: u16 = 1_400;

/// A port that nobody listens on.
pub(crate) fn unused() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(process::id().wrapping_mul(37) % u32::from(COUNT)).unwrap();
    for _ in 0..COUNT {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FROM + (begin.wrapping_add(nth)) % COUNT;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free from {FROM} on");
}
