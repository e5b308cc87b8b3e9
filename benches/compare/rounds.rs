//! Rounds at full speed and at an even pace, contender after contender.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Plan;
use crate::bed::{Bed, Replies, codes};
use crate::contenders::{Contender, SERVICE, Settings, UNLIMITED};
use crate::floor::{Floor, Measured};
use crate::peer::PEERS;
use crate::statistics::quantile;
use crate::{hops, process};

/// Prefetch and concurrency of everybody.
pub(crate) const IN_FLIGHT: usize = 100;
/// Commands per second of the paced rounds.
pub(crate) const PACE: f64 = 200.0;
/// The provider's latency in the paced rounds.
pub(crate) const LATENCY: Duration = Duration::from_millis(50);
/// Brings the sandbox's reply to about 5 KB.
pub(crate) const REPLIES: Replies = Replies::Padded(1_300);
/// After the last event, acknowledgements are still on their way.
pub(crate) const SETTLING: Duration = Duration::from_millis(200);
/// Half of them before a round, half after.
const FLOOR_TIMES: u32 = 300;

/// What was measured of all.
pub(crate) struct Compared {
    pub floor: Vec<Measured>,
    pub contenders: Vec<Results>,
}

/// What was measured of one.
pub(crate) struct Results {
    pub name: String,
    pub full: Vec<Full>,
    pub paced: Vec<Paced>,
    /// Added latency of each command of all paced rounds, in milliseconds.
    pub added_ms: Vec<f64>,
    /// The most memory of the whole run, in MB.
    pub peak_mb: f64,
    /// Why it was not measured, or not to the end.
    pub gap: Option<String>,
}

/// A round at full speed.
#[derive(Clone, Copy)]
pub(crate) struct Full {
    pub round: usize,
    /// Processor time per command of the contender's own process, in microseconds.
    pub cpu_us: f64,
    /// The cryptography of a command, in microseconds: the mean of before and after the round.
    pub floor_us: f64,
    /// Commands per second.
    pub per_second: f64,
    /// Processor time per command of the broker, in microseconds.
    pub broker_us: f64,
    /// The same of the sandbox.
    pub sandbox_us: f64,
    /// What nobody of ours used of the machine's processors, but somebody did; 1 is all of it.
    pub others: f64,
    /// The machine's load before the round.
    pub load: f64,
}

/// A round at an even pace.
#[derive(Clone, Copy)]
pub(crate) struct Paced {
    /// Added latency, in milliseconds.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Processor time per command, in microseconds.
    pub cpu_us: f64,
}

impl Full {
    /// Processor time as a multiple of the floor.
    pub(crate) fn ratio(&self) -> f64 {
        self.cpu_us / self.floor_us
    }
}

impl Results {
    pub(crate) fn new(name: &str) -> Self {
        let (full, paced, added_ms) = (Vec::new(), Vec::new(), Vec::new());
        Self { name: name.to_owned(), full, paced, added_ms, peak_mb: f64::NAN, gap: None }
    }

    /// A value of each round at full speed.
    pub(crate) fn full(&self, value: impl Fn(&Full) -> f64) -> Vec<f64> {
        self.full.iter().map(value).collect()
    }

    /// A value of each paced round.
    pub(crate) fn paced(&self, value: impl Fn(&Paced) -> f64) -> Vec<f64> {
        self.paced.iter().map(value).collect()
    }
}

/// One that takes part, until something goes wrong with it.
struct Seat {
    contender: Option<Contender>,
    results: Results,
}

impl Seat {
    fn taken(name: &str, started: Result<Contender>) -> Self {
        let mut seat = Self { contender: None, results: Results::new(name) };
        match started {
            Ok(contender) => seat.contender = Some(contender),
            Err(error) => seat.leave(&error),
        }
        seat
    }

    /// It does not take part any more; what was measured stays. The others go on.
    fn leave(&mut self, error: &anyhow::Error) {
        self.contender = None;
        eprintln!("bench: {} is LEFT OUT from here on: {error:#}", self.results.name);
        self.results.gap = Some(format!("{error:#}"));
    }
}

/// Starts everybody and lets them take turns. One that fails becomes a gap in the results.
pub(crate) async fn run(plan: &Plan, bed: &Bed, floor: &Floor, peers: &Path) -> Result<Compared> {
    let settings = Settings { in_flight: IN_FLIGHT, calls_per_second: UNLIMITED };
    let mut seats = Vec::new();
    if plan.has(SERVICE) {
        seats.push(Seat::taken(SERVICE, Contender::service(bed, SERVICE, settings).await));
    }
    for (name, program) in &plan.builds {
        seats.push(Seat::taken(name, Contender::build(bed, name, program, settings).await));
    }
    for name in PEERS.into_iter().filter(|name| plan.has(name)) {
        seats.push(Seat::taken(name, Contender::peer(bed, name, peers, IN_FLIGHT).await));
    }
    if plan.has(hops::NAME) && plan.seconds > 0 {
        seats.push(Seat::taken(hops::NAME, Contender::bare_hops(bed).await));
    }
    let mut measured = Vec::new();
    // Round 0 is for warming up: compilers, pools, caches. It is not counted.
    for round in 0..=plan.rounds {
        for nth in 0..seats.len() {
            // Another one begins each round, so that nobody always comes after the same neighbor.
            let place = (nth + round) % seats.len();
            let seat = &mut seats[place];
            let Some(contender) = &mut seat.contender else { continue };
            let turn = turn(plan, bed, floor, contender, round, &mut seat.results, &mut measured).await;
            if let Err(error) = turn.with_context(|| format!("round {round}")) {
                seat.leave(&error);
            }
        }
    }
    let mut contenders = Vec::new();
    for Seat { contender, results } in seats {
        if let Some(Err(error)) = contender.map(|contender| contender.process.end()) {
            eprintln!("bench: {}: {error:#}", results.name);
        }
        contenders.push(results);
    }
    Ok(Compared { floor: measured, contenders })
}

/// One contender's part of one round.
async fn turn(
    plan: &Plan,
    bed: &Bed,
    floor: &Floor,
    contender: &mut Contender,
    round: usize,
    results: &mut Results,
    measured: &mut Vec<Measured>,
) -> Result<()> {
    let name = contender.name.clone();
    bed.provider(Duration::ZERO, REPLIES).await?;
    let load = process::load();
    let before = floor.measure(FLOOR_TIMES / 2)?;
    let mut full = full_speed(bed, contender, plan.commands).await?;
    let floor = before.mean(floor.measure(FLOOR_TIMES / 2)?);
    (full.round, full.floor_us, full.load) = (round, floor.sum(), load);
    println!(
        "round {round} {name}: {:.0} µs per command, {:.0}/s, floor {:.0} µs, broker {:.0} µs, sandbox {:.0} µs, others \
         {:.0} %",
        full.cpu_us,
        full.per_second,
        full.floor_us,
        full.broker_us,
        full.sandbox_us,
        full.others * 100.0
    );
    if round == 0 {
        return Ok(());
    }
    results.full.push(full);
    measured.push(floor);
    if plan.seconds > 0 {
        bed.provider(LATENCY, REPLIES).await?;
        let (cpu_us, added) = paced(bed, contender, plan.seconds).await.context("at an even pace")?;
        let [p50_ms, p99_ms] = [0.5, 0.99].map(|share| quantile(&added, share));
        println!("round {round} {name}: added p50 {p50_ms:.1} p99 {p99_ms:.1} ms");
        results.paced.push(Paced { p50_ms, p99_ms, cpu_us });
        results.added_ms.extend(added);
    }
    // Read now: one that fails later has no memory to look at any more.
    results.peak_mb = contender.process.peak_mb()?;
    Ok(())
}

/// A backlog, as fast as it goes. Round, floor and load are the caller's to report.
pub(crate) async fn full_speed(bed: &Bed, contender: &mut Contender, commands: usize) -> Result<Full> {
    let codes = codes(&contender.name, commands);
    contender.process.hold(true)?;
    bed.publish(&contender.names, &codes).await?;
    let (start, before, all) = (Instant::now(), contender.process.cpu()?, bed.spent()?);
    contender.process.hold(false)?;
    let arrivals = contender.reported.collect(commands).await?;
    let last = arrivals.values().max().copied().unwrap_or(start);
    tokio::time::sleep(SETTLING).await;
    let (cpu, now) = (contender.process.cpu()? - before, bed.spent()?);
    let (broker, sandbox) = (now.broker - all.broker, now.sandbox - all.sandbox);
    let ours = cpu + broker + sandbox + (now.harness - all.harness);
    let busy = now.machine.busy.saturating_sub(all.machine.busy);
    let machine = now.machine.all.saturating_sub(all.machine.all);
    Ok(Full {
        round: 0,
        cpu_us: per_command(cpu, commands),
        floor_us: f64::NAN,
        per_second: commands as f64 / (last - start).as_secs_f64(),
        broker_us: per_command(broker, commands),
        sandbox_us: per_command(sandbox, commands),
        others: busy.saturating_sub(ours).as_secs_f64() / machine.as_secs_f64(),
        load: f64::NAN,
    })
}

/// An even pace: processor time per command, and for each command the milliseconds beyond the provider's own.
async fn paced(bed: &Bed, contender: &mut Contender, seconds: usize) -> Result<(f64, Vec<f64>)> {
    const WARM: usize = 50;
    let codes = codes(&contender.name, WARM + seconds * PACE as usize);
    // The first calls of a round open connections again.
    let (warm, codes) = codes.split_at(WARM);
    bed.publish_paced(&contender.names, warm, PACE).await?;
    contender.reported.collect(warm.len()).await?;
    let before = contender.process.cpu()?;
    let (due, reported) = tokio::join!(
        bed.publish_paced(&contender.names, codes, PACE),
        contender.reported.collect(codes.len())
    );
    let (due, reported) = (due?, reported?);
    tokio::time::sleep(SETTLING).await;
    let cpu = contender.process.cpu()? - before;
    let added = due.iter().filter_map(|(code, due)| {
        let arrived = reported.get(code)?;
        Some((arrived.duration_since(*due).as_secs_f64() - LATENCY.as_secs_f64()) * 1e3)
    });
    let added: Vec<f64> = added.collect();
    anyhow::ensure!(added.len() == codes.len(), "events of other commands came");
    Ok((per_command(cpu, codes.len()), added))
}

/// Microseconds.
pub(crate) fn per_command(cpu: Duration, commands: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / commands as f64
}
