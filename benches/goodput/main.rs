//! Goodput: how fast commands that nothing is wrong with are settled while p % of the others are in trouble, against the
//! same load without trouble. `make bench-goodput`.
//!
//! Commands are offered at an even rate below the limit, so that retries have room, and as a backlog that the limit alone
//! bounds. A coupon in trouble meets it once or twice, and is well then. The age of a command is from its publishing to its
//! result event, both on this machine. Kinds of trouble take turns, round by round; figures are medians over rounds. The
//! peers have the same load, and retry as they do: a command that fails goes back to its queue.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]
#![allow(clippy::print_stdout, reason = "what was measured is worth a line")]
#![allow(missing_docs, reason = "a program")]

#[path = "../../tests/support/bed.rs"]
mod bed;
#[path = "../../tests/support/broker.rs"]
mod broker;
mod contender;
#[path = "../compare/curves.rs"]
mod curves;
mod load;
#[path = "../machine.rs"]
mod machine;
#[path = "../page.rs"]
mod page;
#[path = "../peer.rs"]
mod peer;
#[path = "../program.rs"]
mod program;
#[path = "../compare/statistics.rs"]
#[allow(dead_code, reason = "each benchmark uses its own part of it")]
mod statistics;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use broker::Broker;
use contender::Contender;
use curves::{Line, draw};
use load::{Load, Measured};
use page::Page;
use serde_json::{Value, json};
use statistics::median;

/// Percent of commands in trouble.
const SHARES: [usize; 3] = [3, 10, 30];
/// The share that peers and backlogs are measured at.
const MIDDLE: usize = 10;
/// Where the pages go, if anywhere.
const REPORT: &str = "GOODPUT_REPORT";

type Kind = (&'static str, Value);

fn number(name: &str, default: usize) -> usize {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn kinds() -> Vec<Kind> {
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

/// The medians of several rounds.
fn middle(rounds: &[Measured]) -> Measured {
    let of = |value: fn(&Measured) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
    let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Measured {
        part: of(|measured| measured.part),
        p50: time(of(|measured| measured.p50.as_secs_f64())),
        p99: time(of(|measured| measured.p99.as_secs_f64())),
        calls: of(|measured| measured.calls),
    }
}

/// An age as people read it; one that was never reached as a dash.
fn age(age: Duration) -> String {
    if age == Duration::MAX { "-".to_owned() } else { format!("{age:.0?}") }
}

/// The service under an even load: each kind and share, and the load without trouble first.
struct EvenLoad {
    none: Measured,
    /// By kind, then by share.
    kinds: Vec<(&'static str, Vec<Measured>)>,
}

async fn even_load(broker: &Broker, load: &Load, rounds: usize) -> EvenLoad {
    let kinds = kinds();
    let mut none = Vec::new();
    let mut each = vec![vec![Vec::new(); SHARES.len()]; kinds.len()];
    for _ in 0..rounds {
        none.push(load::even(broker, load, &Contender::Service, None, 0).await);
        for (shares, (_, fault)) in each.iter_mut().zip(&kinds) {
            for (measured, percent) in shares.iter_mut().zip(SHARES) {
                measured.push(load::even(broker, load, &Contender::Service, Some(fault), percent).await);
            }
        }
    }
    let kinds = kinds.iter().zip(each);
    EvenLoad {
        none: middle(&none),
        kinds: kinds
            .map(|((name, _), shares)| (*name, shares.iter().map(|rounds| middle(rounds)).collect()))
            .collect(),
    }
}

impl EvenLoad {
    /// Writes the table; returns what is short of the goals.
    fn write(&self, page: &mut Page) -> Vec<String> {
        page.line(
            "| trouble | share | settled in time | against none | p50 age | p99 age | calls a command |",
        );
        page.line("| --- | --- | --- | --- | --- | --- | --- |");
        let mut row = |kind: &str, percent: usize, measured: &Measured| {
            let Measured { part, p50, p99, calls } = measured;
            let (settled, against) = (100.0 * part, 100.0 * part / self.none.part);
            page.line(format!(
                "| {kind} | {percent} % | {settled:.1} % | {against:.1} % | {} | {} | {calls:.2} |",
                age(*p50),
                age(*p99)
            ));
            against
        };
        row("none", 0, &self.none);
        let mut short = Vec::new();
        for (kind, shares) in &self.kinds {
            for (measured, percent) in shares.iter().zip(SHARES) {
                let goal = if percent > MIDDLE { 95.0 } else { 99.0 };
                let against = row(kind, percent, measured);
                if against < goal || percent == MIDDLE && measured.p99 > 2 * self.none.p99 {
                    short.push(format!("{kind}, {percent} %"));
                }
            }
        }
        short
    }

    /// Two curves by share.
    fn draw(&self, folder: &Path) {
        let at: Vec<_> = [0].into_iter().chain(SHARES).map(|percent| format!("{percent} %")).collect();
        let lines = |value: &dyn Fn(&Measured) -> f64| -> Vec<Line> {
            let line = |(kind, shares): &(&str, Vec<Measured>)| Line {
                name: (*kind).to_owned(),
                values: [&self.none].into_iter().chain(shares).map(value).collect(),
            };
            self.kinds.iter().map(line).collect()
        };
        let axis = "share of commands in trouble";
        let settled = lines(&|measured| 100.0 * measured.part / self.none.part);
        let p99 = lines(&|measured| 1e3 * measured.p99.as_secs_f64());
        for (name, title, lines) in [
            ("goodput-settled", "Good commands settled in time, % of none in trouble", settled),
            ("goodput-p99", "p99 age of good commands, ms", p99),
        ] {
            std::fs::write(folder.join(format!("{name}.svg")), draw(title, axis, &at, &lines)).unwrap();
        }
    }
}

/// A backlog at full load; returns what is short of the goal.
async fn full_load(broker: &Broker, load: &Load, rounds: usize, page: &mut Page) -> Vec<String> {
    let kinds = kinds();
    let mut each = vec![Vec::new(); kinds.len() + 1];
    for _ in 0..rounds {
        each[0].push(load::backlog(broker, load, None, 0).await);
        for (shares, (_, fault)) in each[1..].iter_mut().zip(&kinds) {
            shares.push(load::backlog(broker, load, Some(fault), MIDDLE).await);
        }
    }
    page.line("| trouble | share | used of what the limit leaves |\n| --- | --- | --- |");
    let mut short = Vec::new();
    let names = ["none"].into_iter().chain(kinds.iter().map(|(name, _)| *name));
    for (nth, (name, shares)) in names.zip(&each).enumerate() {
        let used = 100.0 * median(shares);
        let percent = if nth == 0 { 0 } else { MIDDLE };
        page.line(format!("| {name} | {percent} % | {used:.1} % |"));
        if used < 95.0 {
            short.push(format!("{name} with a backlog"));
        }
    }
    short
}

/// The peers, each against itself without trouble.
async fn peers(broker: &Broker, load: &Load, folder: &Path, page: &mut Page) {
    page.line("| peer | trouble | settled in time | against none | p50 age | p99 age | calls a command |");
    page.line("| --- | --- | --- | --- | --- | --- | --- |");
    for name in peer::PEERS {
        if !peer::is_ready(folder, name) {
            page.line(format!("| {name} | left out: {} | | | | | |", peer::why_absent(folder, name)));
            continue;
        }
        let contender = Contender::Peer(folder.to_owned(), name);
        let none = load::even(broker, load, &contender, None, 0).await;
        let mut row = |kind: &str, measured: &Measured| {
            page.line(format!(
                "| {name} | {kind} | {:.1} % | {:.1} % | {} | {} | {:.2} |",
                100.0 * measured.part,
                100.0 * measured.part / none.part,
                age(measured.p50),
                age(measured.p99),
                measured.calls
            ));
        };
        row("none", &none);
        for (kind, fault) in kinds() {
            row(kind, &load::even(broker, load, &contender, Some(&fault), MIDDLE).await);
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let load = Load {
        per_second: number("GOODPUT_RATE", 300),
        limit: u32::try_from(number("GOODPUT_LIMIT", 500)).unwrap(),
        seconds: number("GOODPUT_SECONDS", 10),
    };
    let rounds = number("GOODPUT_ROUNDS", 3);
    let Load { per_second, limit, seconds } = &load;
    let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
    let mut page = Page::new("Goodput", "bench-goodput", &broker);
    page.line(format!(
        "How fast commands that nothing is wrong with are settled while others are in trouble. A coupon in trouble meets it \
         once or twice, and is well then. The provider takes 20 ms a call; {limit} calls a second are allowed. Each figure \
         is the median of {rounds} rounds in which the kinds take turns.\n\n## At an even rate\n\n{per_second} commands a \
         second for {seconds} s. *Settled in time*: good commands whose result came before the last command was a second \
         old.\n"
    ));
    let measured = even_load(&broker, &load, rounds).await;
    let mut short = measured.write(&mut page);
    if let Some(folder) = env::var_os(REPORT) {
        measured.draw(Path::new(&folder));
        page.line(
            "\n![Settled in time by share](goodput-settled.svg)\n\n![p99 age by share](goodput-p99.svg)",
        );
    }
    page.line(format!(
        "\n## With a backlog\n\nGood commands that were redeemed in {seconds} s, as a share of the calls that the limit \
         leaves when those about coupons in trouble are subtracted.\n"
    ));
    short.extend(full_load(&broker, &load, rounds, &mut page).await);
    page.line(match short.as_slice() {
        [] => "\nAll goals are reached: at an even rate 99 % at 3 and 10 %, 95 % at 30 %, p99 at 10 % at most twice that of \
               none; with a backlog 95 %."
            .to_owned(),
        short => format!("\nShort of the goal: {}.", short.join("; ")),
    });
    if let Some(folder) = env::var_os("GOODPUT_PEERS").map(PathBuf::from) {
        page.line(format!(
            "\n## Peers\n\nThe same even rate and {MIDDLE} % in trouble for the [peers](../../benches/peers/README.md), one \
             round each, without a rate limit, with the same prefetch. A command that fails goes back to its queue.\n"
        ));
        peers(&broker, &load, &folder, &mut page).await;
    }
    page.write(REPORT, "goodput.md");
    if short.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
