//! The fault rig: the real program, a real broker and the sandbox as processes, proxies between them, and everything
//! killed, cut, stalled and lied to by a plan that follows from one seed. At the end an oracle reads the sandbox's
//! ledger and every queue: nothing lost, nothing done twice, nothing reported wrong.
//!
//! `cargo test` makes a short run. `make torture` makes the long one and writes `docs/reliability.md`. A run is
//! repeated by its seed: the plan is the same, though threads and disks are not.
//!
//! - `TORTURE_SEED`, `TORTURE_COMMANDS`, `TORTURE_KILLS`, `TORTURE_BROKER_KILLS`, `TORTURE_FAULTS_PERCENT`
//! - `TORTURE_REPORT`: a file to write the report to
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a rig that cannot be set up fails, and it reports as it goes

#[path = "../support/broker.rs"]
mod broker;
mod commands;
mod dice;
mod oracle;
mod plan;
mod proxy;
mod report;
mod returns;
mod rig;
mod service;
mod wires;

use std::time::Instant;

use crate::plan::Size;
use crate::rig::Rig;

/// A run with this seed stands in `cargo test`.
const SEED: u64 = 20_261_123;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_reported_wrong_whatever_breaks() {
    let seed = number("TORTURE_SEED", SEED);
    let size = Size {
        commands: number("TORTURE_COMMANDS", 480) as usize,
        kills: number("TORTURE_KILLS", 13) as usize,
        broker_kills: number("TORTURE_BROKER_KILLS", 1) as usize,
        faults_percent: number("TORTURE_FAULTS_PERCENT", 20) as usize,
    };
    println!("torture: seed {seed}, {size:?}; again by TORTURE_SEED={seed}");
    let begun = Instant::now();
    let rig = Rig::set_up(size, seed).await;
    let (figures, findings) = rig.run(begun).await;
    let lines = report::lines(seed, size, &figures, &findings);
    println!("\ntorture: seed {seed}");
    for (name, value) in &lines {
        println!("  {name:<62} {value}");
    }
    for violation in &findings.violations {
        println!("\nVIOLATION (seed {seed}): {violation}");
    }
    assert!(findings.violations.is_empty(), "{} violations with seed {seed}", findings.violations.len());
    if let Ok(file) = std::env::var("TORTURE_REPORT") {
        std::fs::write(&file, report::page(&lines)).unwrap();
        println!("torture: wrote {file}");
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")),
        Err(_) => default,
    }
}
