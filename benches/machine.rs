//! The machine that a benchmark ran on.

use std::fs;
use std::process::{Command, Stdio};

use crate::broker::Broker;

/// Names and values, of the machine and of what every benchmark uses.
pub(crate) fn rows(broker: &Broker) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let model = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("processor", format!("{model}, {cores} cores")),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("RabbitMQ", broker.ctl(&["version"]).trim().to_owned()),
        ("Erlang", broker.ctl(&["eval", "erlang:system_info(otp_release)."]).trim().replace('"', "")),
        ("rustc", version_of("rustc", &["--version"])),
    ]
}

/// As a table.
pub(crate) fn table(rows: &[(&'static str, String)]) -> String {
    let rows = rows.iter().map(|(name, value)| format!("| {name} | {value} |\n"));
    format!("| machine | |\n|---|---|\n{}", rows.collect::<String>())
}

/// The first line that a program says.
pub(crate) fn version_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("absent").trim().to_owned()
}
