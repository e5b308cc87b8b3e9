//! The two loads: commands that come at an even rate, and a backlog that the limit alone bounds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use lapin::options::BasicAckOptions;
use redeemer_sandbox::{ResponseRecord, Settings};
use serde_json::{Value, json};
use tokio::time::{sleep, sleep_until, timeout};

use crate::bed::{Bed, command};
use crate::broker::Broker;
use crate::contender::Contender;

/// How long a load goes on after the last command, for its own results.
const REST: Duration = Duration::from_secs(1);
/// The longest wait for the rest of the results, which count no more.
const DRAIN: Duration = Duration::from_secs(30);
/// The first seconds of a backlog, which are not measured: the rate starts gently.
const WARM_UP: Duration = Duration::from_secs(5);

/// How much is offered.
pub(crate) struct Load {
    /// Commands a second.
    pub per_second: usize,
    /// Calls a second that the service is allowed.
    pub limit: u32,
    pub seconds: usize,
}

/// What one even load brought to commands that nothing is wrong with.
#[derive(Clone, Copy)]
pub(crate) struct Measured {
    /// Settled in time, of those offered; 0 to 1.
    pub part: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// Calls at the provider for each command.
    pub calls: f64,
}

/// The code of the `nth` coupon: those in trouble lie evenly among the others, and meet it once or twice.
fn code(nth: usize, percent: usize) -> String {
    match (nth * percent / 100 != (nth + 1) * percent / 100, nth % 2) {
        (true, 0) => format!("ONCE{nth}"),
        (true, _) => format!("TWICE{nth}"),
        (false, _) => format!("GOOD{nth}"),
    }
}

/// A bed with `all` usable coupons, of which `percent` meet the fault.
async fn bed(broker: &Broker, load: &Load, all: usize, fault: Option<&Value>, percent: usize) -> Bed {
    let settings =
        Settings { fast_signatures: true, latency: Duration::from_millis(20), ..Settings::default() };
    let mut bed = Bed::with(broker, settings).await;
    bed.config.rate_limit.calls_per_second = load.limit;
    bed.config.log.filter = "warn".to_owned();
    bed.leave_results().await;
    bed.leave_parked().await;
    for nth in 0..all {
        bed.issue(&code(nth, percent), json!({}));
    }
    if let Some(fault) = fault {
        bed.faults(json!([
            {"coupon_prefix": "ONCE", "operation": "use", "first_attempts": 1, "fault": fault},
            {"coupon_prefix": "TWICE", "operation": "use", "first_attempts": 2, "fault": fault},
        ]));
    }
    bed
}

/// Offers commands at an even rate.
pub(crate) async fn even(
    broker: &Broker,
    load: &Load,
    contender: &Contender,
    fault: Option<&Value>,
    percent: usize,
) -> Measured {
    let all = load.per_second * load.seconds;
    let bed = bed(broker, load, all, fault, percent).await;
    let results = bed.bind_results("redemption.#").await;
    let _running = contender.start(&bed).await;
    // The first seconds of a process are its own.
    sleep(Duration::from_secs(2)).await;

    let begin = Instant::now();
    let drained = begin + Duration::from_secs(load.seconds as u64) + REST + DRAIN;
    let reported = tokio::spawn(collect(results, all, drained));
    let mut sent = HashMap::new();
    // Confirms are waited for beside the clock.
    let (mut publishing, bed) = (FuturesUnordered::new(), &bed);
    for nth in 0..all {
        let due = sleep_until((begin + Duration::from_secs_f64(nth as f64 / load.per_second as f64)).into());
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => break,
                Some(()) = publishing.next() => {}
            }
        }
        let code = code(nth, percent);
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
    let at = |part: f64| {
        let last = ages.len().checked_sub(1)?;
        ages.get((last as f64 * part) as usize).copied()
    };
    Measured {
        part: ages.len() as f64 / sent.len() as f64,
        p50: at(0.5).unwrap_or(Duration::MAX),
        p99: at(0.99).unwrap_or(Duration::MAX),
        calls: bed.sandbox.calls_by_second().into_values().sum::<u64>() as f64 / all as f64,
    }
}

/// When each coupon's first result came. Ends with the last coupon, or at the deadline.
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

/// Works off a backlog. The result is the share, 0 to 1, of what the limit leaves when the calls about coupons in trouble
/// are subtracted, that good commands used.
pub(crate) async fn backlog(broker: &Broker, load: &Load, fault: Option<&Value>, percent: usize) -> f64 {
    let window = Duration::from_secs(load.seconds as u64);
    let all = load.limit as usize * ((WARM_UP + window).as_secs() as usize + 2);
    let bed = bed(broker, load, all, fault, percent).await;
    let queued = &bed;
    stream::iter(0..all)
        .for_each_concurrent(200, |nth| async move {
            queued.publish(&command(&code(nth, percent), &format!("USE_{nth:06}"))).await;
        })
        .await;
    let running = Contender::Service.start(&bed).await;
    sleep(WARM_UP + window + Duration::from_secs(1)).await;
    drop(running);

    let attempts = bed.sandbox.ledger().attempts;
    let first = attempts.iter().map(|call| call.at_us).min().unwrap_or(0);
    let from = first + WARM_UP.as_micros() as u64;
    let within = from..from + window.as_micros() as u64;
    let (mut good, mut trouble) = (0_u64, 0_u64);
    for call in attempts.iter().filter(|call| within.contains(&call.at_us)) {
        match call.coupon_code.as_deref().is_some_and(|code| code.starts_with("GOOD")) {
            true => good += u64::from(call.answered == Some(ResponseRecord::Status(200))),
            false => trouble += 1,
        }
    }
    let left = f64::from(load.limit) * window.as_secs_f64() - trouble as f64;
    good as f64 / left
}
