//! `make bench`: the service against what else its users might run, on one machine, in one run.
//!
//! All contenders are up all the time, and take turns: one round of each, then the next round, so that whatever else
//! the machine does hits all of them. Every number is a median over rounds. Everything shares one private broker and
//! one sandbox; what is measured is the processor time of the contender's own process, and then what the whole
//! machine got done.
//!
//! Arguments: none for everything, `guard` for the service alone against a bound. The environment (see [`Plan`])
//! shortens it. Writes `docs/performance.md` and its curves where `BENCH_REPORT` names a folder: after the rounds, and
//! again after each curve. What fails is a gap in the report, with the reason, and then the run fails at its end.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark talks to people")]

mod bed;
mod build;
#[path = "../../tests/support/broker.rs"]
mod broker;
mod contenders;
mod curves;
mod floor;
mod growth;
mod hops;
#[path = "../machine.rs"]
mod machine;
mod parts;
#[path = "../peer.rs"]
mod peer;
mod process;
mod profile;
mod report;
mod rounds;
mod statistics;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result};

use bed::Bed;
use floor::Floor;
use growth::Growth;
use report::Findings;

/// How much is measured.
pub struct Plan {
    /// `BENCH_ROUNDS`, 6: rounds of each contender; the first one more is for warming up.
    pub rounds: usize,
    /// `BENCH_COMMANDS`, 4000: commands of one round at full speed.
    pub commands: usize,
    /// `BENCH_SECONDS`, 10: seconds of one paced round.
    pub seconds: usize,
    /// `BENCH_ONLY`, all: names of contenders, divided by commas.
    pub only: Vec<String>,
    /// `BENCH_BUILDS`, none: further builds of the service to compare, `name=path` divided by commas.
    pub builds: Vec<(String, PathBuf)>,
    /// `BENCH_GROWTH`, 1: how far the curves go; 0 leaves them out, 2 goes on to a million commands.
    pub growth: usize,
    /// `BENCH_BUILD`, 0: 1 measures a release build from nothing.
    pub build: bool,
    /// `BENCH_PROFILE`, 0: 1 shows where the service spends its time, by `perf`.
    pub profile: bool,
    /// `BENCH_ALLOW_MISSING`, 0: 1 lets the run succeed with gaps.
    pub allow_missing: bool,
    /// `BENCH_REPORT`, none: the folder that `performance.md` is written to.
    pub report: Option<PathBuf>,
}

impl Plan {
    fn of_environment() -> Result<Self> {
        Ok(Self {
            rounds: number("BENCH_ROUNDS", 6)?,
            commands: number("BENCH_COMMANDS", 4_000)?,
            seconds: number("BENCH_SECONDS", 10)?,
            only: env::var("BENCH_ONLY")
                .map(|names| names.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            builds: env::var("BENCH_BUILDS").map(|text| builds(&text)).unwrap_or_default(),
            growth: number("BENCH_GROWTH", 1)?,
            build: number("BENCH_BUILD", 0)? > 0,
            profile: number("BENCH_PROFILE", 0)? > 0,
            allow_missing: number("BENCH_ALLOW_MISSING", 0)? > 0,
            report: env::var_os("BENCH_REPORT").map(PathBuf::from),
        })
    }

    /// Whether this contender takes part.
    pub fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Processor time per command above which the guard fails, as a multiple of the floor, in the median round: 1.43 was
/// measured where a signature takes 900 µs, 1.72 where it takes 300. `BENCH_GUARD_RATIO` sets one for a machine that is known.
const GUARD_RATIO: f64 = 2.0;

fn main() -> ExitCode {
    let role = env::args().find(|argument| argument == "guard" || argument == hops::NAME);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.context("no runtime").and_then(|runtime| {
        runtime.block_on(async {
            match role.as_deref() {
                Some(hops::NAME) => hops::run().await,
                Some(_) => guard().await,
                None => everything().await,
            }
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn everything() -> Result<()> {
    let plan = Plan::of_environment()?;
    let peers = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../peers");
    let bed = Bed::start(Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench")).await?;
    let floor = Floor::of(&bed)?;
    let compared = rounds::run(&plan, &bed, &floor, &peers).await?;
    println!("{}", report::table(&compared));
    let mut findings = Findings { compared, build: None, profile: None };
    let write = |findings: &Findings, growth: Option<&Growth>| match &plan.report {
        Some(folder) => report::write(folder, &plan, &bed, &peers, findings, growth),
        None => Ok(()),
    };
    write(&findings, None)?;
    if plan.build || plan.profile {
        let build = build::Build::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-build"))?;
        if plan.build {
            findings.build = Some(build.clean().map_err(|error| format!("{error:#}")));
        }
        if plan.profile {
            let profile = async { profile::run(&bed, &build.with_names()?, plan.commands).await };
            findings.profile = Some(profile.await.map_err(|error| format!("{error:#}")));
        }
        write(&findings, None)?;
    }
    let mut growth = None;
    if plan.growth > 0 {
        growth = Some(growth::run(&plan, &bed, &peers, |growth| write(&findings, Some(growth))).await?);
    }
    write(&findings, growth.as_ref())?;
    bed.end()?;
    let gaps = report::gaps(&findings, growth.as_ref());
    let names: Vec<&str> = gaps.iter().map(|(what, _)| what.as_str()).collect();
    anyhow::ensure!(gaps.is_empty() || plan.allow_missing, "not measured: {}", names.join("; "));
    Ok(())
}

/// The service alone: fails where it costs more than [`GUARD_RATIO`] times the floor.
async fn guard() -> Result<()> {
    let plan = Plan { rounds: 5, only: vec![contenders::SERVICE.to_owned()], ..Plan::of_environment()? };
    let bed = Bed::start(Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-guard")).await?;
    let floor = Floor::of(&bed)?;
    let plan = Plan { seconds: 0, ..plan };
    let compared = rounds::run(&plan, &bed, &floor, Path::new("")).await?;
    bed.end()?;
    let service = compared.contenders.first().context("the service was not measured")?;
    if let Some(why) = &service.gap {
        anyhow::bail!("the service was not measured: {why}");
    }
    let (ratio, allowed) =
        (statistics::median(&service.full(rounds::Full::ratio)), number("BENCH_GUARD_RATIO", GUARD_RATIO)?);
    println!("CPU per command: {ratio:.2} times the floor; {allowed} is allowed");
    anyhow::ensure!(ratio <= allowed, "a command costs {ratio:.2} times the floor");
    Ok(())
}

fn builds(text: &str) -> Vec<(String, PathBuf)> {
    let each = text.split(',').filter_map(|build| build.split_once('='));
    each.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).collect()
}

fn number<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}
