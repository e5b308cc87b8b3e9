//! Rounds at full speed and at an even pace, contender after contender.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Plan;
use crate::bed::{Bed, codes};
use crate::contenders::{Contender, SERVICE, Settings, UNLIMITED};
use crate::floor::{Floor, Measured};
use crate::hops;
use crate::statistics::quantile;

/// Prefetch and concurrency of everybody.
pub const IN_FLIGHT: usize = 100;
/// Commands per second of the paced rounds.
pub const PACE: f64 = 200.0;
/// The provider's latency in the paced rounds.
pub const LATENCY: Duration = Duration::from_millis(50);
/// Brings the sandbox's reply to about 5 KB.
pub const PADDING: usize = 1_300;
/// After the last event, acknowledgements are still on their way.
const SETTLING: Duration = Duration::from_millis(200);
const FLOOR_TIMES: u32 = 300;

/// Peers, in the order of the table.
pub const PEERS: [&str; 5] = ["node-usual", "node-tuned", "python-usual", "python-tuned", "java-tuned"];

/// What was measured of all.
pub struct Compared {
    pub floor: Vec<Measured>,
    pub contenders: Vec<Results>,
}

/// What was measured of one, each a value per round.
pub struct Results {
    pub name: String,
    /// Processor time per command at full speed, in microseconds.
    pub cpu_us: Vec<f64>,
    /// The same as a multiple of the floor, measured right before.
    pub ratios: Vec<f64>,
    /// Commands per second at full speed.
    pub per_second: Vec<f64>,
    /// Added latency of the paced rounds, in milliseconds: p50, p99, p99.9.
    pub latency_ms: [Vec<f64>; 3],
    /// Processor time per command in the paced rounds, in microseconds.
    pub paced_cpu_us: Vec<f64>,
    /// The most memory of the whole run, in MB.
    pub peak_mb: f64,
}

/// Starts everybody and lets them take turns.
pub async fn run(plan: &Plan, bed: &Bed, floor: &Floor, peers: &Path) -> Result<Compared> {
    let mut contenders = Vec::new();
    if plan.has(SERVICE) {
        let settings = Settings { in_flight: IN_FLIGHT, calls_per_second: UNLIMITED };
        contenders.push(Contender::service(bed, SERVICE, settings).await?);
    }
    for (name, program) in &plan.builds {
        let settings = Settings { in_flight: IN_FLIGHT, calls_per_second: UNLIMITED };
        contenders.push(Contender::build(bed, name, program, settings).await?);
    }
    for name in PEERS.into_iter().filter(|name| plan.has(name)) {
        if peers.join(name).join(".installed").exists() {
            contenders.push(Contender::peer(bed, name, peers, IN_FLIGHT).await?);
        } else if !peers.as_os_str().is_empty() {
            eprintln!("bench: {name} is LEFT OUT: benches/peers/prepare did not make it ready");
        }
    }
    if plan.has(hops::NAME) && plan.seconds > 0 {
        contenders.push(Contender::bare_hops(bed).await?);
    }
    let mut compared = Compared {
        floor: Vec::new(),
        contenders: contenders.iter().map(|contender| Results::new(&contender.name)).collect(),
    };
    // Round 0 is for warming up: compilers, pools, caches. It is not counted.
    for round in 0..=plan.rounds {
        for (contender, results) in contenders.iter_mut().zip(&mut compared.contenders) {
            let name = contender.name.clone();
            let floor = floor.measure(FLOOR_TIMES)?;
            bed.provider(Duration::ZERO, PADDING).await?;
            let (cpu_us, per_second) = full_speed(bed, contender, &format!("s{round}"), plan.commands)
                .await
                .with_context(|| format!("round {round} of {name}"))?;
            println!(
                "round {round} {name}: {cpu_us:.0} µs per command, {per_second:.0}/s, floor {:.0} µs",
                floor.sum()
            );
            if round > 0 {
                results.cpu_us.push(cpu_us);
                results.ratios.push(cpu_us / floor.sum());
                results.per_second.push(per_second);
                compared.floor.push(floor);
            }
            if round > 0 && plan.seconds > 0 {
                bed.provider(LATENCY, PADDING).await?;
                let (cpu_us, added) = paced(bed, contender, &format!("p{round}"), plan.seconds)
                    .await
                    .with_context(|| format!("paced round {round} of {name}"))?;
                let quantiles = [0.5, 0.99, 0.999].map(|share| quantile(&added, share));
                println!(
                    "round {round} {name}: added p50 {:.1} p99 {:.1} p99.9 {:.1} ms",
                    quantiles[0], quantiles[1], quantiles[2]
                );
                for (each, value) in results.latency_ms.iter_mut().zip(quantiles) {
                    each.push(value);
                }
                results.paced_cpu_us.push(cpu_us);
            }
        }
    }
    for (contender, results) in contenders.into_iter().zip(&mut compared.contenders) {
        results.peak_mb = contender.process.peak_mb()?;
        contender.process.end()?;
    }
    Ok(compared)
}

/// A backlog, as fast as it goes: processor time per command, and commands per second.
pub async fn full_speed(
    bed: &Bed,
    contender: &mut Contender,
    round: &str,
    commands: usize,
) -> Result<(f64, f64)> {
    let codes = codes(&contender.name, round, commands);
    contender.process.hold(true)?;
    bed.publish(&contender.names, &codes).await?;
    let (start, before) = (Instant::now(), contender.process.cpu()?);
    contender.process.hold(false)?;
    let arrivals = contender.told.collect(commands).await?;
    let last = arrivals.values().max().copied().unwrap_or(start);
    tokio::time::sleep(SETTLING).await;
    let cpu = contender.process.cpu()? - before;
    Ok((per_command(cpu, commands), commands as f64 / (last - start).as_secs_f64()))
}

/// An even pace: processor time per command, and for each command the milliseconds beyond the provider's own.
async fn paced(bed: &Bed, contender: &mut Contender, round: &str, seconds: usize) -> Result<(f64, Vec<f64>)> {
    let codes = codes(&contender.name, round, seconds * PACE as usize);
    // The first calls of a round open connections again.
    let (warm, codes) = codes.split_at(50);
    bed.publish_paced(&contender.names, warm, PACE).await?;
    contender.told.collect(warm.len()).await?;
    let before = contender.process.cpu()?;
    let (sent, told) =
        tokio::join!(bed.publish_paced(&contender.names, codes, PACE), contender.told.collect(codes.len()));
    let (sent, told) = (sent?, told?);
    tokio::time::sleep(SETTLING).await;
    let cpu = contender.process.cpu()? - before;
    let added = sent.iter().filter_map(|(code, sent)| {
        let arrived = told.get(code)?;
        Some((arrived.duration_since(*sent).as_secs_f64() - LATENCY.as_secs_f64()) * 1e3)
    });
    let added: Vec<f64> = added.collect();
    anyhow::ensure!(added.len() == codes.len(), "events of other commands came");
    Ok((per_command(cpu, codes.len()), added))
}

/// Microseconds.
pub fn per_command(cpu: Duration, commands: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / commands as f64
}

impl Results {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cpu_us: Vec::new(),
            ratios: Vec::new(),
            per_second: Vec::new(),
            latency_ms: Default::default(),
            paced_cpu_us: Vec::new(),
            peak_mb: f64::NAN,
        }
    }
}
