//! Goodput: how fast commands that nothing is wrong with are settled while p % of the others are in trouble, against the
//! same load without trouble. `make bench-goodput`.
//!
//! Commands are offered at an even rate below the limit, so that retries have room. A coupon in trouble meets it once or
//! twice, and is well then. The age of a command is from its publishing to its result event, both on this machine.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]
#![allow(clippy::print_stdout, reason = "what was measured is worth a line")]
#![allow(missing_docs, reason = "a program")]

#[path = "../tests/support/bed.rs"]
mod bed;
#[path = "../tests/support/broker.rs"]
mod broker;
mod program;

use std::collections::HashMap;
use std::env;
use std::time::{Duration, Instant};

use bed::{Bed, command};
use broker::Broker;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::BasicAckOptions;
use program::Program;
use redeemer_sandbox::Settings;
use serde_json::{Value, json};
use tokio::time::{sleep_until, timeout};

/// How long a load goes on after the last command, for its own results.
const REST: Duration = Duration::from_secs(1);
/// The longest wait for the rest of the results, which count no more.
const DRAIN: Duration = Duration::from_secs(60);
/// Percent of commands in trouble.
const SHARES: [usize; 3] = [3, 10, 30];

/// What one load brought to commands that nothing is wrong with.
struct Measured {
    /// Settled in time, of those offered.
    part: f64,
    p50: Duration,
    p99: Duration,
    /// Calls at the provider for each command.
    calls: f64,
}

struct Load {
    per_second: usize,
    limit: u32,
    seconds: usize,
}

fn number(name: &str, default: usize) -> usize {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn kinds() -> Vec<(&'static str, Value)> {
    let wanted = env::var("GOODPUT_KINDS").ok();
    let wanted: Option<Vec<_>> = wanted.as_ref().map(|words| words.split(',').collect());
    let all = [
        ("429", json!({"kind": "status", "status": 429})),
        ("500", json!({"kind": "status", "status": 500})),
        ("502 unsigned", json!({"kind": "html_502"})),
        ("cut before", json!({"kind": "cut_before_effect"})),
        ("cut after", json!({"kind": "cut_after_effect"})),
        ("probe signature", json!({"kind": "probe_signature"})),
        ("slow 2 s", json!({"kind": "slow", "ms": 2_000})),
    ];
    all.into_iter().filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted.contains(name))).collect()
}

async fn measure(broker: &Broker, load: &Load, fault: Option<&Value>, percent: usize) -> Measured {
    let settings =
        Settings { fast_signatures: true, latency: Duration::from_millis(20), ..Settings::default() };
    let mut bed = Bed::with(broker, settings).await;
    bed.config.rate_limit.calls_per_second = load.limit;
    bed.config.log.filter = "warn".to_owned();
    bed.leave_results().await;
    bed.leave_parked().await;
    let results = bed.bind_results("redemption.#").await;
    let all = load.per_second * load.seconds;
    // Evenly among the others: the first letter of a code says what it meets.
    let code = |nth: usize| match (nth * percent / 100 != (nth + 1) * percent / 100, nth % 2) {
        (true, 0) => format!("ONCE{nth}"),
        (true, _) => format!("TWICE{nth}"),
        (false, _) => format!("GOOD{nth}"),
    };
    for nth in 0..all {
        bed.issue(&code(nth), json!({}));
    }
    if let Some(fault) = fault {
        bed.faults(json!([
            {"coupon_prefix": "ONCE", "operation": "use", "first_attempts": 1, "fault": fault},
            {"coupon_prefix": "TWICE", "operation": "use", "first_attempts": 2, "fault": fault},
        ]));
    }
    let _program = Program::start(&bed, 0).await;
    // The first second of a process is its own.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let begin = Instant::now();
    let (good, offered) = (code, all);
    let reported =
        tokio::spawn(collect(results, all, begin + Duration::from_secs(load.seconds as u64) + REST + DRAIN));
    let mut sent = HashMap::new();
    // Confirms are waited for beside the clock.
    let (mut publishing, bed) = (FuturesUnordered::new(), &bed);
    for nth in 0..offered {
        let due = sleep_until((begin + Duration::from_secs_f64(nth as f64 / load.per_second as f64)).into());
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => break,
                Some(()) = publishing.next() => {}
            }
        }
        let code = good(nth);
        sent.insert(code.clone(), Instant::now());
        publishing.push(async move { bed.publish(&command(&code, &format!("USE_{nth:06}"))).await });
    }
    while publishing.next().await.is_some() {}
    let end = Instant::now() + REST;
    let reported = reported.await.unwrap();
    let sent: Vec<_> = sent.into_iter().filter(|(code, _)| code.starts_with("GOOD")).collect();
    let mut ages: Vec<_> = sent
        .iter()
        .filter_map(|(code, sent_at)| reported.get(code).filter(|at| **at <= end).map(|at| *at - *sent_at))
        .collect();
    ages.sort_unstable();
    let at = |part: f64| ages[((ages.len() - 1) as f64 * part) as usize];
    Measured {
        part: ages.len() as f64 / sent.len() as f64,
        p50: at(0.5),
        p99: at(0.99),
        calls: bed.sandbox.calls_by_second().into_values().sum::<u64>() as f64 / all as f64,
    }
}

/// When each coupon's result came.
async fn collect(mut results: lapin::Consumer, all: usize, deadline: Instant) -> HashMap<String, Instant> {
    let mut reported = HashMap::new();
    while reported.len() < all {
        let next = timeout(deadline.saturating_duration_since(Instant::now()), results.next()).await;
        let Ok(Some(Ok(delivery))) = next else { break };
        let event: Value = serde_json::from_slice(&delivery.data).unwrap();
        reported.entry(event["subject"].as_str().unwrap().to_owned()).or_insert_with(Instant::now);
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    reported
}

#[tokio::main]
async fn main() {
    let load = Load {
        per_second: number("GOODPUT_RATE", 300),
        limit: u32::try_from(number("GOODPUT_LIMIT", 500)).unwrap(),
        seconds: number("GOODPUT_SECONDS", 30),
    };
    let Load { per_second, limit, seconds } = &load;
    let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    println!(
        "{per_second} commands a second for {seconds} s, {limit} calls a second allowed, 20 ms a call\n"
    );
    println!("| trouble | share | settled in time | against none | p50 age | p99 age | calls a command |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let row = |kind: &str, percent: usize, none: f64, measured: &Measured| {
        let Measured { part, p50, p99, calls } = measured;
        let (settled, against) = (100.0 * part, 100.0 * part / none);
        println!(
            "| {kind} | {percent} % | {settled:.1} % | {against:.1} % | {p50:.0?} | {p99:.0?} | {calls:.2} |"
        );
        against
    };
    let none = measure(&broker, &load, None, 0).await;
    row("none", 0, none.part, &none);
    let mut short = Vec::new();
    for (kind, fault) in kinds() {
        for percent in SHARES {
            let measured = measure(&broker, &load, Some(&fault), percent).await;
            let against = row(kind, percent, none.part, &measured);
            let goal = if percent > 10 { 95.0 } else { 99.0 };
            if against < goal || percent == 10 && measured.p99 > 2 * none.p99 {
                short.push(format!("{kind}, {percent} %"));
            }
        }
    }
    match short.as_slice() {
        [] => println!(
            "\nAll goals are reached: 99 % at 3 and 10 %, 95 % at 30 %; p99 at 10 % at most twice that of none."
        ),
        short => println!("\nShort of the goal: {}", short.join("; ")),
    }
}
