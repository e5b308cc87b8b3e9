//! What grows with what: work in flight, size of replies, instances, backlog.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;

use crate::Plan;
use crate::bed::{Bed, Replies, codes};
use crate::contenders::{Contender, SERVICE, Settings, UNLIMITED, service};
use crate::peer::{PEERS, is_ready};
use crate::process::Process;
use crate::rounds::{REPLIES, SETTLING, full_speed, per_command};
use crate::statistics::median;

/// The provider's latency while the work in flight grows.
const SLOW: Duration = Duration::from_secs(2);
/// Commands of a place on a curve, at the least.
const COMMANDS_MIN: usize = 1_000;
const REPEATS: usize = 3;
/// Commands of the backlog that is drained under a limit.
const LIMITED: usize = 10_000;
/// The default of `rate_limit.calls_per_second`.
const LIMIT: u32 = 500;

/// One place of a curve.
#[derive(Clone)]
pub(crate) struct Point {
    /// Where on the curve: as it is written below the axis.
    pub at: String,
    /// Processor time per command, in microseconds.
    pub cpu_us: f64,
    pub per_second: f64,
    /// The most memory ever, of all instances, in MB.
    pub peak_mb: f64,
}

/// All curves; what could not be measured is a point of NaN, and a gap.
#[derive(Default)]
pub(crate) struct Growth {
    /// Commands in flight, the provider taking two seconds for each; one curve per contender.
    pub in_flight: Vec<(String, Vec<Point>)>,
    /// Bytes of a reply.
    pub replies: Vec<Point>,
    pub instances: Vec<Point>,
    pub backlog: Vec<Point>,
    /// A limit of calls per second, and the commands per second of a backlog under it.
    pub paced: Option<(u32, f64)>,
    /// What was not measured, and why.
    pub gaps: Vec<(String, String)>,
}

impl Growth {
    /// The point, or a gap in its place.
    fn point(&mut self, curve: &str, at: &str, measured: Result<Point>) -> Point {
        match measured {
            Ok(point) => {
                let Point { at, cpu_us, per_second, peak_mb } = &point;
                println!(
                    "growth: {curve} {at}: {cpu_us:.0} µs per command, {per_second:.0}/s, {peak_mb:.0} MB"
                );
                point
            }
            Err(error) => {
                self.gap(format!("{curve} {at}"), &error);
                Point { at: at.to_owned(), cpu_us: f64::NAN, per_second: f64::NAN, peak_mb: f64::NAN }
            }
        }
    }

    fn gap(&mut self, what: String, error: &anyhow::Error) {
        eprintln!("bench: NOT measured: {what}: {error:#}");
        self.gaps.push((what, format!("{error:#}")));
    }
}

/// Measures curve after curve, the longest last; `save` sees what there is after each.
pub(crate) async fn run(
    plan: &Plan,
    bed: &Bed,
    peers: &Path,
    mut save: impl FnMut(&Growth) -> Result<()>,
) -> Result<Growth> {
    let mut growth = Growth::default();
    // The rounds have reported the peers that are not there.
    let peers_here = PEERS.into_iter().filter(|name| plan.has(name) && is_ready(peers, name));
    let names: Vec<&str> = [SERVICE].into_iter().chain(peers_here).collect();
    let mut curves: Vec<(String, Vec<Point>)> =
        names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
    for permits in [10, 100, 500, 2_000] {
        let points = if permits == 10 {
            together_slow(bed, &names, peers, permits).await
        } else {
            let mut points = Vec::new();
            for name in &names {
                points.push(slow(bed, name, peers, permits).await);
            }
            points
        };
        for ((name, curve), point) in curves.iter_mut().zip(points) {
            curve.push(growth.point(&format!("{name}, in flight"), &permits.to_string(), point));
        }
    }
    growth.in_flight = curves;
    save(&growth)?;

    let padded = [0, 4_300, 12_300, 28_300, 60_300].map(Replies::Padded);
    for replies in [Replies::Lean].into_iter().chain(padded) {
        let point = replied(bed, replies).await;
        let point = growth.point("bytes of a reply", "?", point);
        growth.replies.push(point);
    }
    for count in 1..=4 {
        let point = together(bed, count).await;
        let point = growth.point("instances", &count.to_string(), point);
        growth.instances.push(point);
    }
    let sizes = [1_000, 10_000, 100_000, 1_000_000];
    for commands in sizes.into_iter().take(if plan.growth > 1 { 4 } else { 3 }) {
        let repeats = if commands > 10_000 { 1 } else { REPEATS };
        let point = drained_often(bed, commands, repeats).await;
        let point = growth.point("backlog", &commands.to_string(), point);
        if commands == LIMITED && point.per_second.is_finite() {
            let limit = limit_below(point.per_second);
            match drained(bed, LIMITED, limit).await {
                Ok((_, steady)) => {
                    println!("growth: a backlog under a limit of {limit} calls per second: {steady:.1}/s");
                    growth.paced = Some((limit, steady));
                }
                Err(error) => growth.gap(format!("a backlog under a limit of {limit}/s"), &error),
            }
        }
        growth.backlog.push(point);
        save(&growth)?;
    }
    Ok(growth)
}

/// The limit under which the limiter, and not the machine, says how fast a backlog goes: the default, or else two thirds of
/// what the machine does without one.
fn limit_below(per_second: f64) -> u32 {
    let two_thirds = per_second / 1.5;
    if two_thirds >= f64::from(LIMIT) { LIMIT } else { (two_thirds / 10.0).max(1.0) as u32 * 10 }
}

async fn started(bed: &Bed, name: &str, in_flight: usize, calls_per_second: u32) -> Result<Contender> {
    Contender::service(bed, name, Settings { in_flight, calls_per_second }).await
}

/// Many in flight at a slow provider. Each is a fresh process, because its peak of memory is what counts.
async fn slow(bed: &Bed, name: &str, peers: &Path, permits: usize) -> Result<Point> {
    let contender = warmed(bed, name, peers, permits).await?;
    bed.provider(SLOW, REPLIES).await?;
    flown(bed, contender, permits).await
}

/// The same of all at once, where each leaves the machine idle: a thousand commands, ten at a time, take minutes.
async fn together_slow(bed: &Bed, names: &[&str], peers: &Path, permits: usize) -> Vec<Result<Point>> {
    let mut contenders = Vec::new();
    for name in names {
        contenders.push(warmed(bed, name, peers, permits).await);
    }
    if let Err(error) = bed.provider(SLOW, REPLIES).await {
        return names.iter().map(|_| Err(anyhow::anyhow!("{error:#}"))).collect();
    }
    let flights =
        contenders.into_iter().map(|contender| async move { flown(bed, contender?, permits).await });
    join_all(flights).await
}

async fn warmed(bed: &Bed, contender: &str, peers: &Path, permits: usize) -> Result<Contender> {
    bed.provider(Duration::ZERO, REPLIES).await?;
    let name = format!("{contender}-flight{permits}");
    let mut contender = match contender {
        SERVICE => started(bed, &name, permits, UNLIMITED).await?,
        peer => Contender::peer_as(bed, &name, peer, peers, permits).await?,
    };
    full_speed(bed, &mut contender, 500).await.context("while it warmed up")?;
    Ok(contender)
}

async fn flown(bed: &Bed, mut contender: Contender, permits: usize) -> Result<Point> {
    let full = full_speed(bed, &mut contender, (permits * 4).max(COMMANDS_MIN)).await?;
    let peak_mb = contender.process.peak_mb()?;
    contender.process.end()?;
    Ok(Point { at: permits.to_string(), cpu_us: full.cpu_us, per_second: full.per_second, peak_mb })
}

async fn drained_often(bed: &Bed, commands: usize, repeats: usize) -> Result<Point> {
    let mut points = Vec::new();
    for _ in 0..repeats {
        points.push(drained(bed, commands, UNLIMITED).await?.0);
    }
    let each = |value: fn(&Point) -> f64| points.iter().map(value).collect::<Vec<_>>();
    Ok(Point {
        at: commands.to_string(),
        cpu_us: median(&each(|point| point.cpu_us)),
        per_second: median(&each(|point| point.per_second)),
        peak_mb: each(|point| point.peak_mb).into_iter().fold(0.0, f64::max),
    })
}

/// A backlog that was there before the service, from the moment its consumer is there to the last event; and the rate
/// once it has begun, in commands per second.
async fn drained(bed: &Bed, commands: usize, calls_per_second: u32) -> Result<(Point, f64)> {
    /// Until then connections are opened, and a limiter may let a few more through.
    const BEGUN: usize = 500;
    static RUNS: AtomicU64 = AtomicU64::new(0);
    bed.provider(Duration::ZERO, REPLIES).await?;
    let name = format!("backlog{commands}-{}", RUNS.fetch_add(1, Ordering::Relaxed));
    let Contender { process, names, mut reported, .. } = started(bed, &name, 100, calls_per_second).await?;
    // What a start costs by itself is not the backlog's.
    tokio::time::sleep(SETTLING).await;
    let start_up = process.cpu()?;
    process.end()?;
    bed.publish(&names, &codes(&name, commands)).await?;
    let mut process = service(bed, &name)?;
    bed.consumers(&names, 1, &mut process).await?;
    let start = Instant::now();
    let mut arrivals: Vec<Instant> = reported.collect(commands).await?.into_values().collect();
    arrivals.sort_unstable();
    tokio::time::sleep(SETTLING).await;
    let cpu = process.cpu()?.saturating_sub(start_up);
    let peak_mb = process.peak_mb()?;
    process.end()?;
    let (Some(begun), Some(last)) = (arrivals.get(BEGUN - 1), arrivals.last()) else {
        anyhow::bail!("a backlog of {commands} is too short");
    };
    let per_second = commands as f64 / (*last - start).as_secs_f64();
    let steady = (commands - BEGUN) as f64 / (*last - *begun).as_secs_f64();
    Ok((Point { at: commands.to_string(), cpu_us: per_command(cpu, commands), per_second, peak_mb }, steady))
}

async fn replied(bed: &Bed, replies: Replies) -> Result<Point> {
    bed.provider(Duration::ZERO, replies).await?;
    let bytes = bed.reply_bytes().await?;
    let mut contender = started(bed, &format!("replies{bytes}"), 100, UNLIMITED).await?;
    full_speed(bed, &mut contender, 500).await?;
    let (mut cpu_us, mut per_second) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let full = full_speed(bed, &mut contender, 2_000).await?;
        cpu_us.push(full.cpu_us);
        per_second.push(full.per_second);
    }
    let peak_mb = contender.process.peak_mb()?;
    contender.process.end()?;
    let at = format!("{:.1} KB", bytes as f64 / 1e3);
    Ok(Point { at, cpu_us: median(&cpu_us), per_second: median(&per_second), peak_mb })
}

/// Several instances on one queue.
async fn together(bed: &Bed, count: usize) -> Result<Point> {
    bed.provider(Duration::ZERO, REPLIES).await?;
    let name = format!("instances{count}");
    let mut first = started(bed, &name, 100, UNLIMITED).await?;
    full_speed(bed, &mut first, 500).await?;
    let mut others = Vec::new();
    for _ in 1..count {
        others.push(service(bed, &name)?);
    }
    bed.consumers(&first.names, u32::try_from(count)?, &mut first.process).await?;
    // Everybody warms up together: a newcomer makes its first call alone, once the others have counted it.
    let warm = codes(&name, 2_000 * count);
    bed.publish(&first.names, &warm).await?;
    first.reported.collect(warm.len()).await?;
    tokio::time::sleep(SETTLING).await;

    let commands = 6_000;
    let codes = codes(&name, commands);
    let Contender { process, names, mut reported, .. } = first;
    let mut processes = vec![process];
    processes.extend(others);
    processes.iter().try_for_each(|process| process.hold(true))?;
    bed.publish(&names, &codes).await?;
    let (start, before) = (Instant::now(), cpu_of(&processes)?);
    processes.iter().try_for_each(|process| process.hold(false))?;
    let arrivals = reported.collect(commands).await?;
    let last = arrivals.values().max().copied().unwrap_or(start);
    tokio::time::sleep(SETTLING).await;
    let after = cpu_of(&processes)?;
    let peak_mb = processes.iter().map(Process::peak_mb).sum::<Result<f64>>()?;
    processes.into_iter().try_for_each(Process::end)?;
    let per_second = commands as f64 / (last - start).as_secs_f64();
    let cpu_us = per_command(after - before, commands);
    Ok(Point { at: count.to_string(), cpu_us, per_second, peak_mb })
}

fn cpu_of(processes: &[Process]) -> Result<Duration> {
    processes.iter().map(Process::cpu).sum()
}
