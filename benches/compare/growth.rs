//! What grows with what: work in flight, backlog, size of replies, instances.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Plan;
use crate::bed::{Bed, codes};
use crate::contenders::{Contender, SERVICE, Settings, UNLIMITED, service};
use crate::process::Process;
use crate::rounds::{PADDING, full_speed, per_command};
use crate::statistics::median;

/// The provider's latency while the work in flight grows.
const SLOW: Duration = Duration::from_secs(2);
const REPEATS: usize = 3;

/// One place of a curve.
#[derive(Clone)]
pub struct Point {
    /// Where on the curve: as it is written below the axis.
    pub at: String,
    /// Processor time per command, in microseconds.
    pub cpu_us: f64,
    pub per_second: f64,
    /// The most memory ever, of all instances, in MB.
    pub peak_mb: f64,
}

/// All curves.
pub struct Growth {
    /// Commands in flight, the provider taking two seconds for each; one curve per contender.
    pub in_flight: Vec<(String, Vec<Point>)>,
    pub backlog: Vec<Point>,
    /// Bytes of a reply.
    pub replies: Vec<Point>,
    pub instances: Vec<Point>,
    /// Commands per second of a backlog at the default limit of 500 calls per second.
    pub paced: f64,
}

pub async fn run(plan: &Plan, bed: &Bed, peers: &Path) -> Result<Growth> {
    let mut contenders = vec![SERVICE];
    contenders.extend(
        crate::rounds::PEERS
            .into_iter()
            .filter(|name| plan.has(name) && peers.join(name).join(".installed").exists()),
    );
    let mut in_flight = Vec::new();
    for name in contenders {
        let mut points = Vec::new();
        for slots in [10, 100, 500, 2_000] {
            let point = slow(bed, name, peers, slots).await.with_context(|| format!("{slots} in flight"))?;
            tell(&format!("{name}, in flight"), &point);
            points.push(point);
        }
        in_flight.push((name.to_owned(), points));
    }
    let mut backlog = Vec::new();
    let sizes = [1_000, 10_000, 100_000, 1_000_000];
    for commands in sizes.into_iter().take(if plan.growth > 1 { 4 } else { 3 }) {
        backlog
            .push(drained(bed, commands, UNLIMITED).await.with_context(|| format!("backlog of {commands}"))?);
        tell("backlog", &backlog[backlog.len() - 1]);
    }
    let mut replies = Vec::new();
    for padding in [0, 4_000, 12_000, 28_000, 60_000] {
        replies.push(replied(bed, padding).await.with_context(|| format!("replies padded by {padding}"))?);
        tell("bytes of a reply", &replies[replies.len() - 1]);
    }
    let mut instances = Vec::new();
    for count in 1..=4 {
        instances.push(together(bed, count).await.with_context(|| format!("{count} instances"))?);
        tell("instances", &instances[instances.len() - 1]);
    }
    let paced = drained(bed, 10_000, 500).await?.per_second;
    println!("growth: a backlog at 500 calls per second: {paced:.1}/s");
    Ok(Growth { in_flight, backlog, replies, instances, paced })
}

fn tell(curve: &str, point: &Point) {
    let Point { at, cpu_us, per_second, peak_mb } = point;
    println!("growth: {curve} {at}: {cpu_us:.0} µs per command, {per_second:.0}/s, {peak_mb:.0} MB");
}

async fn started(bed: &Bed, name: &str, in_flight: usize, calls_per_second: u32) -> Result<Contender> {
    Contender::service(bed, name, Settings { in_flight, calls_per_second }).await
}

/// Many in flight at a slow provider. Each is a fresh process, because its peak of memory is what counts.
async fn slow(bed: &Bed, contender: &str, peers: &Path, slots: usize) -> Result<Point> {
    bed.provider(Duration::ZERO, PADDING).await?;
    let name = format!("{contender}-flight{slots}");
    let mut contender = match contender {
        SERVICE => started(bed, &name, slots, UNLIMITED).await?,
        peer => Contender::peer_as(bed, &name, peer, peers, slots).await?,
    };
    full_speed(bed, &mut contender, "w", 500).await?;
    bed.provider(SLOW, PADDING).await?;
    let (cpu_us, per_second) = full_speed(bed, &mut contender, "f", (slots * 4).max(50)).await?;
    let peak_mb = contender.process.peak_mb()?;
    contender.process.end()?;
    Ok(Point { at: slots.to_string(), cpu_us, per_second, peak_mb })
}

/// A backlog that was there before the service.
async fn drained(bed: &Bed, commands: usize, calls_per_second: u32) -> Result<Point> {
    const BEGUN: usize = 500;
    bed.provider(Duration::ZERO, PADDING).await?;
    let name = format!("backlog{commands}-{calls_per_second}");
    let warm = started(bed, &name, 100, calls_per_second).await?;
    let Contender { name, process, names, mut told } = warm;
    process.end()?;
    bed.publish(&names, &codes(&name, "b", commands)).await?;
    let process = service(bed, &name)?;
    told.collect(BEGUN).await?;
    let (start, before) = (Instant::now(), process.cpu()?);
    let rest = commands - BEGUN;
    let arrivals = told.collect(rest).await?;
    let last = arrivals.values().max().copied().unwrap_or(start);
    let cpu = process.cpu()? - before;
    let peak_mb = process.peak_mb()?;
    process.end()?;
    let per_second = rest as f64 / (last - start).as_secs_f64();
    Ok(Point { at: commands.to_string(), cpu_us: per_command(cpu, rest), per_second, peak_mb })
}

async fn replied(bed: &Bed, padding: usize) -> Result<Point> {
    bed.provider(Duration::ZERO, padding).await?;
    let mut contender = started(bed, &format!("replies{padding}"), 100, UNLIMITED).await?;
    let bytes = bed.reply_bytes().await?;
    full_speed(bed, &mut contender, "w", 500).await?;
    let (mut cpu_us, mut per_second) = (Vec::new(), Vec::new());
    for round in 0..REPEATS {
        let (cpu, rate) = full_speed(bed, &mut contender, &format!("r{round}"), 2_000).await?;
        cpu_us.push(cpu);
        per_second.push(rate);
    }
    let peak_mb = contender.process.peak_mb()?;
    contender.process.end()?;
    let at = format!("{:.0} KB", bytes as f64 / 1e3);
    Ok(Point { at, cpu_us: median(&cpu_us), per_second: median(&per_second), peak_mb })
}

/// Several instances on one queue.
async fn together(bed: &Bed, count: usize) -> Result<Point> {
    bed.provider(Duration::ZERO, PADDING).await?;
    let name = format!("instances{count}");
    let mut first = started(bed, &name, 100, UNLIMITED).await?;
    full_speed(bed, &mut first, "w", 500).await?;
    let mut others = Vec::new();
    for _ in 1..count {
        others.push(service(bed, &name)?);
    }
    bed.consumers(&first.names, u32::try_from(count)?, &mut first.process).await?;
    // Everybody warms up together: a newcomer makes its first call alone, once the others have counted it.
    let warm = codes(&name, "v", 2_000 * count);
    bed.publish(&first.names, &warm).await?;
    first.told.collect(warm.len()).await?;

    let commands = 6_000;
    let codes = codes(&name, "i", commands);
    let Contender { process, names, mut told, .. } = first;
    let mut processes = vec![process];
    processes.extend(others);
    processes.iter().try_for_each(|process| process.hold(true))?;
    bed.publish(&names, &codes).await?;
    let (start, before) = (Instant::now(), cpu_of(&processes)?);
    processes.iter().try_for_each(|process| process.hold(false))?;
    let arrivals = told.collect(commands).await?;
    let last = arrivals.values().max().copied().unwrap_or(start);
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
