//! The pace, measured in real time: `make pace`. It takes a quiet machine, so it is no part of the tests; there a
//! simulated clock holds the limiter to the same bounds (see `src/pace.rs`).

#![allow(clippy::unwrap_used)] // in the helpers too
#![allow(clippy::print_stdout)] // what was measured is worth a line

#[path = "support/bed.rs"]
mod bed;
#[path = "support/broker.rs"]
mod broker;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, command, until};
use redeemer::runtime::rate_limiter::{Priority, RateLimiter};
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

/// What is measured here must not be disturbed by its neighbors.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The most arrivals in any second, whenever it begins, and in any whole second of the sandbox; all by the ledger.
fn busiest(arrivals: &[u64]) -> (usize, usize) {
    let sliding = arrivals
        .iter()
        .enumerate()
        .map(|(nth, at)| arrivals.partition_point(|other| *other < at + 1_000_000) - nth);
    let mut whole: BTreeMap<u64, usize> = BTreeMap::new();
    for at in arrivals {
        *whole.entry(at / 1_000_000).or_default() += 1;
    }
    (sliding.max().unwrap_or(0), whole.into_values().max().unwrap_or(0))
}

fn arrivals(bed: &Bed) -> Vec<u64> {
    let ledger = bed.sandbox.ledger();
    let mut arrivals: Vec<u64> = ledger.attempts.iter().map(|attempt| attempt.at_us).collect();
    arrivals.sort_unstable();
    arrivals
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_one_rate_limit_from_the_join() {
    let _alone = ALONE.lock().await;
    let mut bed = Bed::new().await;
    bed.config.rate_limit.calls_per_second = 100;
    for nth in 0..3_200 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let first = bed.start().await;
    // Counted without copying the ledger, which would hold the sandbox up.
    let calls = || bed.sandbox.calls_by_second().into_values().sum::<u64>();
    until("the first at work", async || calls() >= 400).await;
    let second = bed.start().await;
    until("almost all done", async || calls() >= 3_000).await;
    let arrivals = arrivals(&bed);
    let loaded = (arrivals[2_999] - arrivals[0]) as f64 / 1e6;
    let average = 2_999.0 / loaded;
    let (sliding, whole) = busiest(&arrivals);
    println!("calls by second: {:?}", bed.sandbox.calls_by_second().values());
    println!("{average:.1}/s over {loaded:.1} s; at most {sliding} in any second, {whole} in a whole one");
    assert!(sliding <= 102 && whole <= 102, "{sliding} in some second, {whole} in a whole one");
    assert!(average > 95.0, "{average} on average");
    for service in [&first, &second] {
        let taken = service.metric(r#"redeemer_commands_taken_total{arrival="first"}"#).await;
        assert!(taken > 1_000.0, "both work: {taken}");
    }
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limiter_holds_five_hundred_a_second_within_two_percent() {
    let _alone = ALONE.lock().await;
    let rate_limiter = RateLimiter::start(NonZeroU32::new(500).unwrap());
    let (turns, mut taken) = mpsc::unbounded_channel();
    let start = Instant::now();
    for nth in 0..50 {
        let (rate_limiter, turns) = (rate_limiter.clone(), turns.clone());
        let rank = if nth % 5 == 0 { Priority::Query } else { Priority::First };
        tokio::spawn(async move {
            while start.elapsed() < Duration::from_secs(20) {
                rate_limiter.acquire(rank).await;
                let _ = turns.send(start.elapsed().as_micros() as u64);
            }
        });
    }
    drop(turns);
    let mut times = Vec::new();
    while let Some(at) = taken.recv().await {
        times.push(at);
    }
    times.sort_unstable();
    times.retain(|at| *at < 20_000_000);
    let average = times.len() as f64 / 20.0;
    let (sliding, whole) = busiest(&times);
    println!("{average:.1}/s; at most {sliding} in any second, {whole} in a whole one");
    assert!((490.0..=500.0).contains(&average), "{average} on average");
    assert!(sliding <= 500 && whole <= 500, "{sliding} in some second, {whole} in a whole one");
}

/// The program itself, on the configuration of a bed.
struct Program(Child);

impl Program {
    fn start(bed: &Bed) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(bed.config_file())
            .args(["run", "--with-parent"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Ended at once, or as an operator would.
    fn end(mut self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(id, signal).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bed at 100 calls a second with this many commands that wait.
async fn backlog(commands: usize) -> Bed {
    let mut bed = Bed::new().await;
    bed.config.rate_limit.calls_per_second = 100;
    for nth in 0..commands {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    bed
}

fn within_limit(bed: &Bed, what: &str) {
    let (sliding, whole) = busiest(&arrivals(bed));
    println!("{what}: {:?}", bed.sandbox.calls_by_second().values());
    println!("{what}: at most {sliding} in any second, {whole} in a whole one");
    // Calls do not arrive as evenly as they set out.
    assert!(sliding <= 102, "{sliding} in some second: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_stay_within_the_limit_of_any_second() {
    let _alone = ALONE.lock().await;
    let bed = backlog(1_500).await;
    let calls = || bed.sandbox.calls_by_second().into_values().sum::<u64>();
    let mut program = Program::start(&bed);
    for (nth, signal) in
        [rustix::process::Signal::TERM, rustix::process::Signal::KILL].repeat(2).iter().enumerate()
    {
        let goal = calls() + 220;
        until("at work", async || calls() >= goal).await;
        println!("{nth}: {signal:?}");
        program.end(*signal);
        program = Program::start(&bed);
    }
    let goal = calls() + 220;
    until("at work", async || calls() >= goal).await;
    drop(program);
    within_limit(&bed, "restarts");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_join_and_leave_stay_within_the_limit() {
    let _alone = ALONE.lock().await;
    let bed = backlog(2_000).await;
    let calls = || bed.sandbox.calls_by_second().into_values().sum::<u64>();
    let first = Program::start(&bed);
    until("the first at work", async || calls() >= 200).await;
    let others = [Program::start(&bed), Program::start(&bed)];
    until("all at work", async || calls() >= 700).await;
    for other in others {
        other.end(rustix::process::Signal::TERM);
    }
    until("alone again", async || calls() >= 1_500).await;
    drop(first);
    within_limit(&bed, "joining and leaving");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_broker_stays_within_the_limit() {
    let _alone = ALONE.lock().await;
    let broker = tokio::task::spawn_blocking(broker::Broker::start).await.unwrap();
    let mut bed = Bed::on(&broker).await;
    bed.config.rate_limit.calls_per_second = 100;
    for nth in 0..1_500 {
        bed.issue(&format!("C{nth}"), json!({}));
        bed.publish(&command(&format!("C{nth}"), &format!("USE_{nth:04}"))).await;
    }
    let calls = |bed: &Bed| bed.sandbox.calls_by_second().into_values().sum::<u64>();
    let instances = [0; 3].map(|_| Program::start(&bed));
    until("all at work", async || calls(&bed) >= 500).await;
    tokio::task::block_in_place(|| broker.restart());
    let bed = bed.reconnect(&broker).await;
    let goal = calls(&bed) + 500;
    until("at work again", async || calls(&bed) >= goal).await;
    drop(instances);
    within_limit(&bed, "a restart of the broker");
}
