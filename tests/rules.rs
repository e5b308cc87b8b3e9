//! The alerts, judged by promtool: the rules are sound, and each case of each alert comes out as it says. That each
//! fires for its cause is shown by tests/ops.rs.

#![allow(clippy::unwrap_used)] // in the helpers too

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn promtool_finds_the_rules_sound_and_their_cases_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(folder.join("tests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    promtool(&["check", "config"], &[folder.join("prometheus.yml")]);
    promtool(&["check", "rules"], &[folder.join("redeemer.rules.yml")]);
    promtool(&["test", "rules"], &cases);
}

/// A new alert must bring its cases: one that fires and one that is quiet, and one for how long its cause must last.
#[test]
fn every_alert_has_its_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    let (rules, lasting) = (read("redeemer.rules.yml"), read("tests/for.yml"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let cases = read(&format!("tests/{alert}.yml"));
        for kind in ["firing", "quiet"] {
            let named = cases.lines().any(|line| line.trim().starts_with(&format!("- name: {kind}")));
            assert!(named, "{alert} has no case that is {kind}");
        }
        assert!(lasting.contains(&format!("- name: '{alert}'\n")), "{alert} has no case in for.yml");
    }
}

fn promtool(arguments: &[&str], files: &[PathBuf]) {
    let output = Command::new("promtool").args(arguments).args(files).output();
    let output = output.expect("promtool is needed: deploy/local/install prometheus");
    let told = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {told}");
}
