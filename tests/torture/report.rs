//! Says what a run showed: lines for the terminal, and the page `docs/reliability.md`.

use std::time::Duration;

use jiff::Timestamp;

use crate::oracle::Findings;
use crate::plan::Size;
use crate::rig::Figures;

/// What was measured, in words and numbers.
pub(crate) fn lines(seed: u64, size: Size, figures: &Figures, findings: &Findings) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
    let kills: usize = figures.kills.values().sum();
    let percent = |faulty: usize, of: usize| 100.0 * faulty as f64 / of.max(1) as f64;
    line("day (UTC)", Timestamp::now().strftime("%F").to_string());
    line("seed", seed.to_string());
    line("broker", format!("RabbitMQ {}", figures.broker_version));
    line("build", if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned());
    line("commands", size.commands.to_string());
    line("instances of the service killed (`kill -9`)", kills.to_string());
    for (point, times) in &figures.kills {
        line(&format!("- {}", point.replace('-', " ")), times.to_string());
    }
    line("instances stopped by SIGTERM", figures.stops.to_string());
    line("broker killed (`kill -9`) and restarted", figures.broker_kills.to_string());
    for (trouble, times) in &figures.troubles {
        line(trouble, times.to_string());
    }
    line("calls to the payment API", findings.calls.to_string());
    line(
        "calls that went wrong on purpose",
        format!(
            "{} ({:.1} %), of {} kinds",
            findings.faulty,
            percent(findings.faulty, findings.calls),
            figures.kinds
        ),
    );
    let (faulty, calls) = findings.at_random;
    line(
        "- at random, of the calls about coupons that no fault is made for",
        format!("{faulty} of {calls} ({:.1} %)", percent(faulty, calls)),
    );
    line("redemptions in the ledger", findings.effects.to_string());
    line("**commands lost**", findings.lost.to_string());
    line("**effects doubled**", findings.doubled.to_string());
    line("**outcomes wrong**", findings.wrong.to_string());
    line("**outcomes contradictory**", findings.contradictory.to_string());
    line("**deadlines not kept**", findings.late.to_string());
    line("**uses sent again without a query**", findings.unasked.to_string());
    line("events", format!("{}, {} of them distinct", findings.events, findings.distinct));
    line("events repeated, under the same id", findings.repeats.to_string());
    line("unresolved, and superseded when asked again", figures.superseded.to_string());
    line("- by two operators at once, runs of `parked replay`", figures.operators.to_string());
    line("used, and returned by the user before any query", figures.returned.to_string());
    line("messages that a careless client dies of, all reported as invalid", figures.undecodable.to_string());
    line("broker takes connections again -> first command settled", spread(&figures.recoveries));
    line("broker gone -> not ready", spread(&figures.unready));
    let (backlog, drain) = figures.backlog;
    line(
        "backlog at the end of all trouble, and its drain",
        format!("{backlog} commands, {}", seconds(drain)),
    );
    line("duration", seconds(figures.took));
    lines
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort();
    match sorted.as_slice() {
        [] => "not measured".to_owned(),
        [only] => format!("{:.2} s", only.as_secs_f64()),
        [.., most] => {
            let seconds = |percent| sorted[up_to(percent, sorted.len())].as_secs_f64();
            let most = most.as_secs_f64();
            format!("{:.2} s (median), {:.2} s (nine in ten), {most:.2} s (most)", seconds(50), seconds(90))
        }
    }
}

/// Of this many sorted times, the place of the one that this many in a hundred do not exceed.
pub(crate) fn up_to(percent: usize, times: usize) -> usize {
    (times * percent).div_ceil(100).saturating_sub(1)
}

/// The page.
pub(crate) fn page(lines: &[(String, String)]) -> String {
    let rows: String = lines.iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
    PAGE.replace("{figures}\n", &rows)
}

const PAGE: &str = include_str!("reliability.md");
