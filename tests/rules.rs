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

fn promtool(arguments: &[&str], files: &[PathBuf]) {
    let output = Command::new("promtool").args(arguments).args(files).output();
    let output = output.expect("promtool is needed: deploy/local/install prometheus");
    let reported = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {reported}");
}
