//! The table, and `docs/performance.md` around it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;

use crate::bed::Bed;
use crate::build::Built;
use crate::contenders::SERVICE;
use crate::curves::{Line, draw};
use crate::growth::{Growth, Point};
use crate::parts::{self, Part};
use crate::peer::{PEERS, is_ready};
use crate::rounds::{Compared, Full, IN_FLIGHT, LATENCY, PACE, Results};
use crate::statistics::{median, quantile, range};
use crate::{Plan, hops, machine};

/// What was changed for speed, and what each change gave: written by people, beside this file.
const CHANGES: &str = include_str!("changes.md");

/// What the run found out, beside its curves.
pub(crate) struct Findings {
    pub compared: Compared,
    /// A release build from nothing, or why none exists.
    pub build: Option<Result<Built, String>>,
    /// The functions that take the most processor time.
    pub profile: Option<Result<String, String>>,
}

/// What was not measured, and why.
pub(crate) fn gaps(findings: &Findings, growth: Option<&Growth>) -> Vec<(String, String)> {
    let contenders = findings.compared.contenders.iter();
    let mut gaps: Vec<(String, String)> =
        contenders.filter_map(|each| Some((each.name.clone(), each.gap.clone()?))).collect();
    if let Some(Err(why)) = &findings.build {
        gaps.push(("a clean release build".to_owned(), why.clone()));
    }
    if let Some(Err(why)) = &findings.profile {
        gaps.push(("the profile".to_owned(), why.clone()));
    }
    gaps.extend(growth.into_iter().flat_map(|growth| growth.gaps.iter().cloned()));
    gaps
}

/// The comparison in Markdown.
pub(crate) fn table(compared: &Compared) -> String {
    let mut text =
        "| contender | CPU µs per command | × floor | commands/s | added p50 ms | p99 | p99.9 | CPU µs at \
                    200/s | peak MB |\n|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for each in &compared.contenders {
        if each.full.is_empty() {
            let _ = writeln!(text, "| {} | not measured |{}", each.name, " - |".repeat(7));
            continue;
        }
        let p999 = quantile(&each.added_ms, 0.999);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
            each.name,
            spread(&each.full(|full| full.cpu_us), 0),
            spread(&each.full(Full::ratio), 2),
            spread(&each.full(|full| full.per_second), 0),
            spread(&each.paced(|paced| paced.p50_ms), 1),
            spread(&each.paced(|paced| paced.p99_ms), 1),
            if p999.is_finite() { format!("**{p999:.1}**") } else { "-".to_owned() },
            spread(&each.paced(|paced| paced.cpu_us), 0),
            each.peak_mb,
        );
    }
    let (sign, verify): (Vec<_>, Vec<_>) =
        compared.floor.iter().map(|floor| (floor.sign_us, floor.verify_us)).unzip();
    let _ = writeln!(
        text,
        "\nThe floor, signing one request and verifying one response in aws-lc-rs: {} + {} µs.",
        spread(&sign, 0),
        spread(&verify, 1)
    );
    text
}

/// What broker, provider and strangers used beside each contender.
fn beside(compared: &Compared) -> String {
    let mut text =
        "| contender | broker, CPU µs per command | sandbox, the same | others, % of the machine | load \
                    before |\n|---|---|---|---|---|\n"
            .to_owned();
    for each in compared.contenders.iter().filter(|each| !each.full.is_empty()) {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            each.name,
            spread(&each.full(|full| full.broker_us), 0),
            spread(&each.full(|full| full.sandbox_us), 0),
            spread(&each.full(|full| full.others * 100.0), 0),
            spread(&each.full(|full| full.load), 1),
        );
    }
    text
}

/// Every round at full speed.
fn round_by_round(compared: &Compared) -> String {
    let mut text =
        "| round | contender | CPU µs | floor µs | × floor | commands/s | broker µs | sandbox µs | others % \
                    | load |\n|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    let all = compared.contenders.iter().flat_map(|each| each.full.iter().map(|full| (&each.name, full)));
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(_, full)| full.round);
    for (name, full) in all {
        let Full { round, cpu_us, floor_us, per_second, broker_us, sandbox_us, others, load } = full;
        let _ = writeln!(
            text,
            "| {round} | {name} | {cpu_us:.0} | {floor_us:.0} | {:.2} | {per_second:.0} | {broker_us:.0} | \
             {sandbox_us:.0} | {:.0} | {load:.1} |",
            full.ratio(),
            others * 100.0,
        );
    }
    text
}

/// The median, with the smallest and largest round in brackets.
fn spread(samples: &[f64], digits: usize) -> String {
    if samples.is_empty() {
        return "-".to_owned();
    }
    let (low, high) = range(samples);
    format!("**{:.digits$}** ({low:.digits$}-{high:.digits$})", median(samples))
}

/// What was aimed at, and whether it was reached.
fn targets(findings: &Findings, growth: Option<&Growth>) -> String {
    let compared = &findings.compared;
    let mut text = "| target | measured | reached |\n|---|---|---|\n".to_owned();
    // A number that is not one was not measured; a comparison with it would read as a failure.
    let mut row = |target: &str, value: f64, measured: String, reached: bool| {
        let (measured, reached) = match (value.is_finite(), reached) {
            (false, _) => ("not measured".to_owned(), "-"),
            (true, true) => (measured, "yes"),
            (true, false) => (measured, "**no**"),
        };
        let _ = writeln!(text, "| {target} | {measured} | {reached} |");
    };
    let nobody = Results::new("nobody");
    let of = |name: &str| compared.contenders.iter().find(|each| each.name == name).unwrap_or(&nobody);
    let cpu_of = |name: &str| median(&of(name).full(|full| full.cpu_us));
    let rate_of = |name: &str| median(&of(name).full(|full| full.per_second));
    let p50_of = |name: &str| median(&of(name).paced(|paced| paced.p50_ms));
    let p99_of = |name: &str| median(&of(name).paced(|paced| paced.p99_ms));
    let (cpu, rate) = (cpu_of(SERVICE), rate_of(SERVICE));
    let ratio = median(&of(SERVICE).full(Full::ratio));
    row("CPU per command at most 1.5 times the floor", ratio, format!("{ratio:.2}"), ratio <= 1.5);
    for (peer, share, words) in [
        ("node-tuned", 0.75, "three quarters"),
        ("node-usual", 0.5, "half"),
        ("python-usual", 1.0 / 6.0, "a sixth"),
    ] {
        let part = cpu / cpu_of(peer);
        row(&format!("CPU below {words} of {peer}"), part, format!("{part:.2}"), part < share);
    }
    for peer in PEERS {
        let wanted = if peer == "node-tuned" { 1.2 } else { 1.0 };
        let times = rate / rate_of(peer);
        let target = format!("commands/s at least {wanted} times {peer}");
        row(&target, times, format!("{times:.2}"), times >= wanted);
    }
    let more = p50_of(SERVICE) - p50_of(hops::NAME);
    row("added p50 within 1 ms of the bare hops", more, format!("{more:+.2} ms"), more <= 1.0);
    let times = p99_of(SERVICE) / p99_of(hops::NAME);
    row("added p99 within 1.5 times the bare hops", times, format!("{times:.2}"), times <= 1.5);
    for (words, ours, theirs) in
        [("p50", p50_of(SERVICE), PEERS.map(p50_of)), ("p99", p99_of(SERVICE), PEERS.map(p99_of))]
    {
        // Of the peers that were measured; the missing ones are named as gaps.
        let best = theirs.into_iter().fold(f64::NAN, f64::min);
        let target = format!("added {words} below every peer");
        row(&target, ours - best, format!("{ours:.1} and {best:.1} ms"), ours < best);
    }
    for (at, limit) in [("100", 25.0), ("500", 40.0), ("2000", 120.0)] {
        // At 100 in flight there is a second process that has run for long: the larger of both counts.
        let peak = |name: &str| {
            let long_run = if at == "100" { of(name).peak_mb } else { f64::NAN };
            let curves = growth.into_iter().flat_map(|growth| &growth.in_flight);
            let points = curves.filter(|(curve, _)| curve == name).flat_map(|(_, points)| points);
            points.filter(|point| point.at == at).map(|point| point.peak_mb).fold(long_run, f64::max)
        };
        let ours = peak(SERVICE);
        let target = format!("peak memory under {limit:.0} MB at {at} in flight");
        row(&target, ours, format!("{ours:.1} MB"), ours < limit);
        let share = ours / PEERS.into_iter().map(peak).fold(f64::NAN, f64::min);
        let target = format!("peak memory below half of the smallest peer at {at} in flight");
        row(&target, share, format!("{share:.2}"), share < 0.5);
    }
    let (limit, paced) = growth.and_then(|growth| growth.paced).unwrap_or((0, f64::NAN));
    let off = (paced / f64::from(limit) - 1.0).abs() * 100.0;
    let target = "a backlog drained at the rate limit to within 2 %";
    row(target, off, format!("{paced:.1}/s at {limit}/s"), off <= 2.0);
    let (seconds, mb) = match &findings.build {
        Some(Ok(built)) => (built.took.as_secs_f64(), built.bytes as f64 / 1e6),
        _ => (f64::NAN, f64::NAN),
    };
    row("release binary under 20 MB", mb, format!("{mb:.1} MB"), mb < 20.0);
    let target = "a clean release build under 4 minutes on two cores";
    row(target, seconds, format!("{seconds:.0} s"), seconds < 240.0);
    text
}

/// Writes `performance.md` and `performance/*.svg` into `folder`.
pub(crate) fn write(
    folder: &Path,
    plan: &Plan,
    bed: &Bed,
    peers: &Path,
    findings: &Findings,
    growth: Option<&Growth>,
) -> Result<()> {
    let compared = &findings.compared;
    let mut text = format!(
        "# Performance\n\nMade by `make bench` on {}. All contenders run all the time and take turns, a different \
         one first in each round. Each number \
         is the median over {} rounds of {} commands (at full speed) or {} s at \
         {PACE:.0} commands/s (latency, with a provider that takes {} ms), with the smallest and largest round in \
         brackets; p99.9 is over all rounds. One private broker and one sandbox serve all. They, the harness and \
         the contender share the machine's processors, so the processor time of the contender's own \
         process is the first measure and commands/s the second.\n\n",
        Timestamp::now().strftime("%F"),
        plan.rounds,
        plan.commands,
        plan.seconds,
        LATENCY.as_millis(),
    );
    text += &machine(bed, peers);
    let _ = write!(
        text,
        "\n## Compared with alternatives\n\n{}\nCPU is user and kernel time of all threads. The ratio is to the \
         mean of the floor right before and right after the same round. Added latency \
         is the time from the moment a command is due to the moment its event is there, minus the \
         provider's {} ms; `{}` only takes, calls, publishes and acknowledges. Every contender has {IN_FLIGHT} \
         commands in flight, quorum queues, confirms, manual acknowledgments, and verifies responses. The service \
         also has its log, metrics, rate \
         limit, circuit breaker and lanes. The peers are in \
         [benches/peers](../benches/peers/README.md).\n\nProcessor time of the others, at full speed:\n\n{}\n## \
         Targets\n\n{}",
        table(compared),
        LATENCY.as_millis(),
        hops::NAME,
        beside(compared),
        targets(findings, growth),
    );
    text += "\nFor the reasons of the missed targets, see [performance/why.md](performance/why.md), written \
             after the run whose date it names.\n";
    for (page, tells) in [
        ("performance/goodput.md", "How fast good commands are settled while others are in trouble"),
        ("performance/recovery.md", "How fast the full rate is back after trouble"),
    ] {
        // Another benchmark makes it.
        if folder.join(page).exists() {
            let _ = write!(text, "\n{tells}: [{page}]({page}).\n");
        }
    }
    let gaps = gaps(findings, growth);
    if !gaps.is_empty() {
        text += "\n## Not measured\n\n";
    }
    for (what, why) in gaps {
        let _ = writeln!(text, "- {what}: {}", why.replace('\n', " "));
    }
    if let Some(Ok(profile)) = &findings.profile {
        let _ = write!(
            text,
            "\n## Where the time goes\n\nThe functions of the service that take the most of its processor time at full \
             speed, by `perf`. The functions of aws-lc named `bn_` or `rsaz` are the \
         signature.\n\n```text\n{profile}```\n"
        );
    }
    let parts = parts::read();
    if !parts.is_empty() {
        text += "\n## Each part by itself\n\nBy `make bench-parts`, on one processor; in brackets the 95 % \
                 confidence interval.";
        if parts.iter().all(|part| part.instructions.is_none()) {
            text += " Instructions were not counted: no counter is given to us here.";
        }
        text += "\n\n| part | µs | instructions |\n|---|---|---|\n";
    }
    for Part { name, nanos, instructions } in parts {
        let [value, low, high] = nanos.map(|ns| ns / 1e3);
        let instructions = instructions.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let _ = writeln!(text, "| {name} | **{value:.2}** ({low:.2}-{high:.2}) | {instructions} |");
    }
    if let Some(growth) = growth {
        let curves = folder.join("performance");
        fs::create_dir_all(&curves)?;
        text += "\n## Growth\n\nIn flight: at 10 all contenders run at the same time, at more one after the other. \
                 `python-usual` has at most 100 concurrent calls, because its library keeps httpx's connection \
                 limit; its further commands wait.\n\n";
        for (name, title, svg) in draw_all(growth) {
            fs::write(curves.join(format!("{name}.svg")), svg)?;
            let _ = writeln!(text, "![{title}](performance/{name}.svg)\n");
        }
    } else {
        text += "\n";
    }
    let _ = write!(text, "## What the changes brought\n\n{CHANGES}");
    let _ = write!(text, "\n## Round by round\n\nAt full speed.\n\n{}", round_by_round(compared));
    fs::write(folder.join("performance.md"), text)?;
    Ok(())
}

fn draw_all(growth: &Growth) -> Vec<(&'static str, &'static str, String)> {
    let at = |points: &[Point]| points.iter().map(|point| point.at.clone()).collect::<Vec<_>>();
    let line = |name: &str, points: &[Point], value: fn(&Point) -> f64| Line {
        name: name.to_owned(),
        values: points.iter().map(value).collect(),
    };
    let cpu = |point: &Point| point.cpu_us;
    let rate = |point: &Point| point.per_second;
    let peak = |point: &Point| point.peak_mb;
    let one = |title, axis, points: &[Point], value| {
        draw(title, axis, &at(points), &[line(SERVICE, points, value)])
    };
    let flights = growth.in_flight.first().map(|(_, points)| at(points)).unwrap_or_default();
    let each = |title, value: fn(&Point) -> f64| {
        let lines: Vec<_> = growth.in_flight.iter().map(|(name, points)| line(name, points, value)).collect();
        draw(title, "commands in flight, the provider taking 2 s", &flights, &lines)
    };
    let title = "Peak memory by work in flight, MB";
    let mut drawn = vec![("in-flight-memory", title, each(title, peak))];
    let title = "CPU per command by work in flight, µs";
    drawn.push(("in-flight-cpu", title, each(title, cpu)));
    let mut add = |name, title, axis, points: &[Point], value: fn(&Point) -> f64| {
        // While the curves are still being measured, those to come have no point.
        if !points.is_empty() {
            drawn.push((name, title, one(title, axis, points, value)));
        }
    };
    add("reply-cpu", "CPU per command by size of the response, µs", "reply", &growth.replies, cpu);
    let axis = "instances";
    add("instances-cpu", "CPU per command by instances on one queue, µs", axis, &growth.instances, cpu);
    add("instances-rate", "Commands per second by instances on one queue", axis, &growth.instances, rate);
    let axis = "commands waiting at the start";
    add("backlog-cpu", "CPU per command by backlog, µs", axis, &growth.backlog, cpu);
    add("backlog-rate", "Commands per second by backlog", axis, &growth.backlog, rate);
    drawn
}

/// On what this was measured.
fn machine(bed: &Bed, peers: &Path) -> String {
    let mut rows = machine::rows(&bed.broker);
    let python = peers.join("python-tuned/venv/bin/python").display().to_string();
    for (peer, name, program, argument) in [
        ("node-usual", "Node", "node", "--version"),
        ("python-tuned", "Python", python.as_str(), "--version"),
        ("java-plain", "Java", "java", "-version"),
    ] {
        if is_ready(peers, peer) {
            rows.push((name, machine::version_of(program, &[argument])));
        }
    }
    machine::table(&rows)
}
