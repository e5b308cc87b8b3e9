//! `redeemer demo`, as a newcomer runs it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::broker;
use crate::programs;
use serde_json::json;

use crate::programs::{ended, err, out, post, redeemer, run, terminate, until, unused_dir};

fn demo(dir: &Path, prefix: &str, commands: &str) -> Command {
    let mut demo = redeemer();
    demo.args(["demo", "--broker-uri", broker::shared().uri(), "--commands", commands, "--prefix", prefix]);
    demo.arg("--dir").arg(dir);
    demo
}

/// Starts it and reads on until a line begins so; gives the lines and the rest of the output.
fn begin(mut demo: Command, line: &str) -> (Child, Vec<String>, impl Iterator<Item = String>) {
    let mut child = demo.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the demo starts");
    let out = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut lines = out.lines().map(|line| line.expect("the output is text"));
    let mut seen = Vec::new();
    let found = lines.by_ref().any(|each| {
        seen.push(each);
        seen.last().is_some_and(|each| each.contains(line))
    });
    if !found {
        let status = child.wait();
        panic!("{status:?}, and no line with {line:?} in {seen:?}");
    }
    (child, seen, lines)
}

fn address(lines: &[String], name: &str) -> String {
    let line = lines.iter().find(|line| line.starts_with(name)).expect("it is reported");
    let url = line.split_whitespace().nth(1).expect("there is a URL");
    url.trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned()
}

fn queues(prefix: &str) -> Vec<String> {
    let list = broker::shared().ctl(&["-q", "list_queues", "name"]);
    list.lines().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

#[test]
fn every_outcome_is_as_expected_and_nothing_is_left_behind() {
    let dir = unused_dir("demo");
    let output = run(&mut demo(&dir, "tidy", "60"));
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", err(&output));

    let row = |kind: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(kind));
        line.unwrap_or_else(|| panic!("no {kind} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("the vendor's example"), "the vendor's example 1 redeemed 1 redeemed 1 ok");
    assert!(row("the same command twice").contains("redeemed"));
    assert!(row("expired").contains("refused: expired"));
    assert!(row("used by another").ends_with("refused: used_by_another 0 ok"));
    assert!(row("unknown coupon").ends_with("refused: no_such_coupon 0 ok"));
    assert!(row("malformed").ends_with("invalid 0 ok"));
    assert!(row("failing twice, then well").contains("redeemed"));
    assert!(row("cut after the effect").contains("redeemed"));
    assert!(!text.contains("WRONG"), "{text}");
    assert!(text.contains("All 61 commands ended as expected"), "{text}");
    assert!(text.contains("p50") && text.contains("p99") && text.contains("residue 0"), "{text}");
    // The example stands there as the vendor printed it, and its result below.
    assert!(text.contains(r#""use_time": "2025-07-24T00:00+08:00""#), "{text}");
    assert!(text.contains("34657_20250101_123456  -  EFFECTIVE  1 call"), "{text}");

    assert_eq!(err(&output), "", "nothing to complain, and no progress bar on a pipe");
    assert!(!dir.exists());
    assert_eq!(queues("tidy"), [""; 0]);
}

#[test]
fn one_other_outcome_is_seen_and_the_logs_are_kept() {
    let dir = unused_dir("demo");
    let (mut child, seen, rest) = begin(demo(&dir, "tampered", "20"), "more commands of every kind");
    // A user who deletes a coupon while the payment API is still failing for it.
    let answer =
        post(&address(&seen, "sandbox"), "/_sandbox/coupons/fails_000005/act", &json!({"do": "delete"}));
    assert!(answer.as_deref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{answer:?}");

    let text: Vec<_> = rest.collect();
    let row = text.iter().find(|line| line.contains("failing twice")).expect("there is a table");
    assert!(row.contains("refused: deleted") && row.ends_with("WRONG"), "{text:#?}");
    assert!(!text.iter().any(|line| line.contains("ended as expected")), "{text:#?}");
    let mut complaints = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("it is piped"), &mut complaints)
        .expect("the complaints are text");
    assert_eq!(ended(&mut child).code(), Some(4), "{complaints}");
    assert!(complaints.contains("failing twice, then well (demo_fails_000005): got refused: deleted"));
    assert!(dir.join("service.log").exists(), "kept for who looks into it");
    assert_eq!(queues("tampered"), [""; 0]);
    std::fs::remove_dir_all(dir).expect("it is there");
}

#[test]
fn reported_to_stop_it_takes_everything_along() {
    let dir = unused_dir("demo");
    let (mut child, seen, _) = begin(demo(&dir, "stopped", "60"), "more commands of every kind");
    terminate(&child);
    assert_eq!(ended(&mut child).code(), Some(1));
    for program in ["sandbox", "service"] {
        assert!(std::net::TcpStream::connect(address(&seen, program)).is_err(), "{program} still listens");
    }
    assert!(!dir.exists());
    assert_eq!(queues("stopped"), [""; 0]);
}

#[test]
fn killed_it_still_takes_its_programs_along() {
    let dir = unused_dir("demo");
    let (mut child, seen, _) = begin(demo(&dir, "killed", "60"), "more commands of every kind");
    child.kill().expect("it still runs");
    ended(&mut child);
    for program in ["sandbox", "service"] {
        let address = address(&seen, program);
        until("the program is gone", || std::net::TcpStream::connect(&address).is_err().then_some(()));
    }
    std::fs::remove_dir_all(dir).expect("it could not remove it any more");
}

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let dir = unused_dir("demo");
    std::fs::write(dir.join("thesis.txt"), "years of work").expect("it is written");
    let output = run(&mut demo(&dir, "refused", "1"));
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("is not empty"), "{}", err(&output));
    assert_eq!(std::fs::read(dir.join("thesis.txt")).expect("it is still there"), b"years of work");
    std::fs::remove_dir_all(dir).expect("it is there");
}

#[test]
fn names_that_are_in_use_are_left_alone() {
    let programs = programs::Programs::start(broker::shared().uri());
    let dir = unused_dir("demo");
    let output = run(&mut demo(&dir, &programs.prefix, "1"));
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("is there already: choose another --prefix"), "{}", err(&output));
    assert!(queues(&programs.prefix).contains(&format!("{}.commands", programs.prefix)));
}

#[test]
fn absent_broker_is_reported_at_once_without_the_password() {
    let dir = unused_dir("demo");
    let output = run(redeemer()
        .args(["demo", "--broker-uri", "amqp://redeemer:geheim@127.0.0.1:1/%2f", "--dir"])
        .arg(&dir));
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("127.0.0.1:1"), "{}", err(&output));
    assert!(!err(&output).contains("geheim") && !out(&output).contains("geheim"), "{}", err(&output));
    assert!(!dir.exists());
}
