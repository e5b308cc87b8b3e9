//! The table, and `docs/performance.md` around it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use jiff::Timestamp;

use crate::bed::Bed;
use crate::contenders::SERVICE;
use crate::curves::{Line, draw};
use crate::growth::{Growth, Point};
use crate::rounds::{Compared, IN_FLIGHT, LATENCY, PACE, Results};
use crate::statistics::{median, range};
use crate::{Plan, hops};

/// What was changed for speed, and what each change gave: written by people, beside this file.
const CHANGES: &str = include_str!("changes.md");

/// The comparison in Markdown.
pub fn table(compared: &Compared) -> String {
    let mut text =
        "| contender | CPU µs per command | × floor | commands/s | added p50 ms | p99 | p99.9 | CPU µs at \
                    200/s | peak MB |\n|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for each in &compared.contenders {
        let [p50, p99, p999] = &each.latency_ms;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
            each.name,
            spread(&each.cpu_us, 0),
            spread(&each.ratios, 2),
            spread(&each.per_second, 0),
            spread(p50, 1),
            spread(p99, 1),
            spread(p999, 1),
            spread(&each.paced_cpu_us, 0),
            each.peak_mb,
        );
    }
    let (sign, verify): (Vec<_>, Vec<_>) =
        compared.floor.iter().map(|floor| (floor.sign_us, floor.verify_us)).unzip();
    let _ = writeln!(
        text,
        "\nThe floor, signing one request and verifying one reply in aws-lc-rs: {} + {} µs.",
        spread(&sign, 0),
        spread(&verify, 1)
    );
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
fn targets(compared: &Compared, growth: Option<&Growth>) -> String {
    let mut text = "| target | measured | reached |\n|---|---|---|\n".to_owned();
    let mut row = |target: &str, measured: String, reached: bool| {
        let reached = if reached { "yes" } else { "**no**" };
        let _ = writeln!(text, "| {target} | {measured} | {reached} |");
    };
    let of = |name: &str| compared.contenders.iter().find(|each| each.name == name);
    let Some(service) = of(SERVICE) else { return String::new() };
    let peers: Vec<&Results> =
        compared.contenders.iter().filter(|each| each.name != SERVICE && each.name != hops::NAME).collect();
    let (cpu, rate) = (median(&service.cpu_us), median(&service.per_second));
    let ratio = median(&service.ratios);
    row("CPU per command at most 1.5 times the floor", format!("{ratio:.2}"), ratio <= 1.5);
    for (peer, share, words) in [
        ("node-tuned", 0.75, "three quarters"),
        ("node-usual", 0.5, "half"),
        ("python-usual", 1.0 / 6.0, "a sixth"),
    ] {
        if let Some(peer) = of(peer) {
            let part = cpu / median(&peer.cpu_us);
            row(&format!("CPU below {words} of {}", peer.name), format!("{part:.2}"), part < share);
        }
    }
    for peer in &peers {
        let wanted = if peer.name == "node-tuned" { 1.2 } else { 1.0 };
        let times = rate / median(&peer.per_second);
        row(
            &format!("commands/s at least {wanted} times {}", peer.name),
            format!("{times:.2}"),
            times >= wanted,
        );
    }
    if let Some(hops) = of(hops::NAME) {
        let [p50, p99, _] =
            [0, 1, 2].map(|nth| (median(&service.latency_ms[nth]), median(&hops.latency_ms[nth])));
        let more = p50.0 - p50.1;
        row("added p50 within 1 ms of the bare hops", format!("{more:+.2} ms"), more <= 1.0);
        let times = p99.0 / p99.1;
        row("added p99 within 1.5 times the bare hops", format!("{times:.2}"), times <= 1.5);
    }
    for (nth, words) in [(0, "p50"), (1, "p99")] {
        let ours = median(&service.latency_ms[nth]);
        let best = peers.iter().map(|peer| median(&peer.latency_ms[nth])).fold(f64::INFINITY, f64::min);
        if best.is_finite() && ours.is_finite() {
            row(
                &format!("added {words} below every peer"),
                format!("{ours:.1} and {best:.1} ms"),
                ours < best,
            );
        }
    }
    if let Some(growth) = growth {
        let peak = |points: &[Point], at: &str| {
            points.iter().find(|point| point.at == at).map_or(f64::NAN, |point| point.peak_mb)
        };
        for (at, limit) in [("100", 25.0), ("500", 40.0), ("2000", 120.0)] {
            let each = |name: &str, points: &[Point]| (name == SERVICE, peak(points, at));
            let all: Vec<_> = growth.in_flight.iter().map(|(name, points)| each(name, points)).collect();
            let ours = all.iter().find(|(own, _)| *own).map_or(f64::NAN, |(_, mb)| *mb);
            let least = all.iter().filter(|(own, _)| !own).map(|(_, mb)| *mb).fold(f64::INFINITY, f64::min);
            row(
                &format!("peak memory under {limit:.0} MB at {at} in flight"),
                format!("{ours:.1} MB"),
                ours < limit,
            );
            if least.is_finite() {
                row(
                    &format!("peak memory below half of the smallest peer at {at} in flight"),
                    format!("{:.2}", ours / least),
                    ours < least / 2.0,
                );
            }
        }
        let off = (growth.paced / 500.0 - 1.0).abs() * 100.0;
        row(
            "a backlog drained at the limit of 500/s to within 2 %",
            format!("{:.1}/s", growth.paced),
            off <= 2.0,
        );
    }
    if let Ok(metadata) = fs::metadata(env!("CARGO_BIN_EXE_redeemer")) {
        let mb = metadata.len() as f64 / 1e6;
        row("release binary under 20 MB", format!("{mb:.1} MB"), mb < 20.0);
    }
    text
}

/// Writes `performance.md` and `performance/*.svg` into `folder`.
pub fn write(
    folder: &Path,
    plan: &Plan,
    bed: &Bed,
    peers: &Path,
    compared: &Compared,
    growth: Option<&Growth>,
) -> Result<()> {
    let mut text = format!(
        "# Performance\n\nMade by `make bench` on {}. All contenders are up all the time and take turns; each number \
         is the median over {} rounds of {} commands (at full speed) or {} s at {PACE:.0} commands/s (latency, with a \
         provider that takes {} ms), with the smallest and largest round in brackets. One private broker and one \
         sandbox serve all; they, the harness and the contender share the machine's processors, so the processor time \
         of the contender's own process is the honest measure and commands/s the second.\n\n",
        Timestamp::now().strftime("%F"),
        plan.rounds,
        plan.commands,
        plan.seconds,
        LATENCY.as_millis(),
    );
    text += &machine(bed, peers);
    let _ = write!(
        text,
        "\n## Against what else one might run\n\n{}\nCPU is user and kernel time of all threads. The ratio is to the \
         floor measured right before the same round. Added latency runs from the moment a command is sent to the \
         moment its event is there, less the provider's {} ms; `{}` does nothing but take, call, publish and \
         acknowledge. Everybody has {IN_FLIGHT} commands in flight, quorum queues, confirms, manual acknowledgements, \
         and verifies replies; the service also keeps its log, metrics, pace, breaker and lanes. The peers are in \
         [benches/peers](../benches/peers/README.md).\n\n## Targets\n\n{}",
        table(compared),
        LATENCY.as_millis(),
        hops::NAME,
        targets(compared, growth),
    );
    if let Some(growth) = growth {
        let curves = folder.join("performance");
        fs::create_dir_all(&curves)?;
        text += "\n## Growth\n\n";
        for (name, title, svg) in draw_all(growth) {
            fs::write(curves.join(format!("{name}.svg")), svg)?;
            let _ = writeln!(text, "![{title}](performance/{name}.svg)\n");
        }
    }
    let _ = write!(text, "## What made it so\n\n{CHANGES}");
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
    let mut drawn = Vec::new();
    let mut add = |name, title, svg| drawn.push((name, title, svg));
    let title = "Peak memory by work in flight, MB";
    add("in-flight-memory", title, each(title, peak));
    let title = "CPU per command by work in flight, µs";
    add("in-flight-cpu", title, each(title, cpu));
    let title = "CPU per command by backlog, µs";
    add("backlog-cpu", title, one(title, "commands waiting at the start", &growth.backlog, cpu));
    let title = "Commands per second by backlog";
    add("backlog-rate", title, one(title, "commands waiting at the start", &growth.backlog, rate));
    let title = "CPU per command by size of the reply, µs";
    add("reply-cpu", title, one(title, "reply", &growth.replies, cpu));
    let title = "CPU per command by instances on one queue, µs";
    add("instances-cpu", title, one(title, "instances", &growth.instances, cpu));
    let title = "Commands per second by instances on one queue";
    add("instances-rate", title, one(title, "instances", &growth.instances, rate));
    drawn
}

/// On what this was measured.
fn machine(bed: &Bed, peers: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let model = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kernel = read("/proc/sys/kernel/osrelease");
    let mut rows = vec![
        ("processor", format!("{model}, {cores} cores")),
        ("memory", memory),
        ("kernel", kernel.trim().to_owned()),
        ("RabbitMQ", bed.broker.ctl(&["version"]).trim().to_owned()),
        ("rustc", version_of("rustc", &["--version"])),
    ];
    for (peer, name, program, argument) in [
        ("node-tuned", "Node", "node", "--version"),
        ("python-tuned", "Python", "python3", "--version"),
        ("java-tuned", "Java", "java", "-version"),
    ] {
        if peers.join(peer).join(".installed").exists() {
            rows.push((name, version_of(program, &[argument])));
        }
    }
    let rows = rows.into_iter().map(|(name, value)| format!("| {name} | {value} |\n"));
    format!("| machine | |\n|---|---|\n{}", rows.collect::<String>())
}

/// The first line that a program says.
fn version_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("absent").trim().to_owned()
}
