//! `redeemer publish` and `redeemer watch` on a real broker, beside a running service.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use crate::broker;
use crate::programs;
use serde_json::Value;

use crate::own_faults::SUBCOMMANDS;
use crate::programs::{Programs, ended, err, out, redeemer, run, terminate, until};

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("one event per line")).collect()
}

/// Starts `watch`, and returns once it is bound.
fn watch(mut command: Command) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("watch starts");
    let mut complaints = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut first = String::new();
    complaints.read_line(&mut first).expect("it says something");
    assert!(first.contains("watching redemption."), "{first}");
    (child, complaints)
}

fn rest(mut child: Child) -> (Option<i32>, String) {
    let mut text = String::new();
    let mut out = child.stdout.take().expect("it is piped");
    out.read_to_string(&mut text).expect("the output is text");
    (ended(&mut child).code(), text)
}

#[test]
fn a_file_of_commands_is_published_and_waited_for() {
    let programs = Programs::start(broker::shared().uri());
    let (watching, _) = watch(programs.command(&["watch", "--json", "--count", "50"]));

    let lines: Vec<_> = (0..50).map(|n| programs::command(&format!("{n:03}")).to_string()).collect();
    // Empty lines, a carriage return and a missing last line feed are no reason to complain.
    let file = programs.file("orders.jsonl", format!("\n{}", lines.join("\r\n\n")).as_bytes());
    let output = run(programs.command(&["publish", "--wait", "--expect", "redeemed", "--lines"]).arg(&file));
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));

    let reported = events(&out(&output));
    let numbers: BTreeSet<_> =
        reported.iter().map(|event| event["data"]["out_request_no"].as_str().unwrap_or_default()).collect();
    assert_eq!((reported.len(), numbers.len()), (50, 50));
    assert!(reported.iter().all(|event| event["data"]["coupon_state"] == "USED"));
    let complaints = err(&output);
    assert!(complaints.contains("50 published, 50 redeemed in "), "{complaints}");
    assert!(!complaints.contains(['\r', '\u{1b}']), "no progress bar on a pipe: {complaints:?}");

    let (code, watched) = rest(watching);
    let ids = |events: &[Value]| events.iter().map(|event| event["id"].to_string()).collect::<BTreeSet<_>>();
    assert_eq!((code, ids(&events(&watched))), (Some(0), ids(&reported)));
}

#[test]
fn a_line_that_is_no_command_is_named_and_the_service_judges_it() {
    let programs = Programs::start(broker::shared().uri());
    let good = [programs::command("one"), programs::command("two")].map(|command| command.to_string());
    let text = [good[0].as_bytes(), b"{ \"openid\": ", b"[1]", b"\xff", good[1].as_bytes()].join(&b"\n"[..]);
    let file = programs.file("orders.jsonl", &text);

    let mut command = programs.command(&["publish", "--wait", "--expect", "redeemed", "--lines"]);
    let output = run(command.arg(&file));
    assert_eq!(output.status.code(), Some(4));
    let complaints = err(&output);
    for line in [
        "line 2 is not JSON (column 11); published unchanged",
        "line 3 is JSON, but not an object; published unchanged",
        "line 4 is not JSON",
        "5 published, 3 invalid, 2 redeemed in ",
        "not redeemed: line ",
        "line 2 invalid (invalid_command)",
    ] {
        assert!(complaints.contains(line), "no {line:?} in {complaints}");
    }
    assert_eq!(events(&out(&output)).len(), 5);
}

#[test]
fn one_command_comes_from_an_argument_a_file_or_standard_input() {
    let programs = Programs::start(broker::shared().uri());
    let check = |mut command: Command, input: &str, number: &str| {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        let reported = events(&out(&output));
        assert_eq!(reported.len(), 1);
        assert_eq!(reported[0]["data"]["out_request_no"], number);
    };
    let text = |name: &str| programs::command(name).to_string();
    check(programs.command(&["publish", "--wait", &text("arg")]), "", "number_arg");
    check(programs.command(&["publish", "--wait", "-"]), &text("stdin"), "number_stdin");
    check(programs.command(&["publish", "--wait", "--lines", "-"]), &text("lines"), "number_lines");
    let file = programs.file("order.json", text("file").as_bytes());
    let at = format!("@{}", file.display());
    check(programs.command(&["publish", "--wait", &at, "--deadline", "10m"]), "", "number_file");
    // The same results again, on a key of the caller's and under an id of the caller's.
    let mine = ["publish", "--wait", "--reply-to", "my.key", "--correlation-id", "my-id", &text("arg")];
    check(programs.command(&mine), "", "number_arg");
}

#[test]
fn what_never_comes_is_reported_when_the_time_is_over() {
    let mut programs = Programs::start(broker::shared().uri());
    programs.stop_service();
    let command = programs::command("late").to_string();
    let output = run(&mut programs.command(&["publish", "--wait", "--timeout", "300ms", &command]));
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(out(&output), "");
    assert!(err(&output).contains("1 without an event within 300ms: line 1"), "{}", err(&output));

    // It is not lost: anyone who watches when the service is back sees it.
    let (watching, _) = watch(programs.command(&["watch", "--count", "1"]));
    programs.start_service();
    let (code, line) = rest(watching);
    assert_eq!(code, Some(0));
    assert!(line.contains("  redeemed    au…late   number_late  -  USED  1 call"), "{line}");
}

#[test]
fn watch_shows_only_what_was_asked_for() {
    let programs = Programs::start(broker::shared().uri());
    let (refused, _) = watch(programs.command(&["watch", "--outcome", "refused", "--brand", "120344"]));
    let (invalid, _) = watch(programs.command(&["watch", "redemption.invalid.*", "--count", "1"]));
    let good = programs::command("good").to_string();
    let unknown = good.replace("auto_good", "unknown_coupon");
    let file = programs.file("orders.jsonl", [&good, "please", &unknown].join("\n").as_bytes());
    let published = run(programs.command(&["publish", "--wait", "--lines"]).arg(file));
    assert_eq!(published.status.code(), Some(0), "{}", err(&published));

    let (code, text) = rest(invalid);
    assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
    assert!(text.contains("  invalid     -         -  invalid_command  -  0 calls"), "{text}");
    // It has no count, so it is ended by a signal once it has seen something.
    let mut refused = refused;
    let mut out = BufReader::new(refused.stdout.take().expect("it is piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("there is a line");
    assert!(line.contains("  refused     un…upon   number_good  no_such_coupon  -  "), "{line}");
    terminate(&refused);
    assert_eq!(ended(&mut refused).code(), Some(0));
    let mut more = String::new();
    out.read_to_string(&mut more).expect("the output is text");
    assert_eq!(more, "");
}

#[test]
fn watch_says_when_the_connection_is_lost() {
    let broker = broker::Broker::start();
    let mut programs = Programs::start(broker.uri());
    let (mut watching, mut complaints) = watch(programs.command(&["watch"]));
    programs.stop_service();
    broker.kill9();
    let mut text = String::new();
    complaints.read_to_string(&mut text).expect("the complaints are text");
    assert!(text.contains("connection to the broker lost: "), "{text}");
    assert_eq!(ended(&mut watching).code(), Some(1));
}

#[test]
fn unreachable_broker_is_reported_without_the_password() {
    let command = programs::command("x").to_string();
    for (uri, code, reported) in [
        ("amqp://redeemer:geheim@127.0.0.1:1/%2f", 1, "127.0.0.1:1, virtual host /"),
        ("amqp://redeemer:geheim@127.0.0.1:notaport/%2f", 3, "broker.uri"),
        // The scheme forgotten: the parser would quote the whole text.
        ("redeemer:geheim@127.0.0.1:5672/%2f", 3, "broker.uri"),
        ("amqp:redeemer:geheim@127.0.0.1", 3, "broker.uri"),
        // A character of the password that ends it for the parser.
        ("amqp://redeemer:1234/geheim@127.0.0.1:1/%2f", 3, "broker.uri"),
        ("amqp://redeemer:12#geheim@127.0.0.1:1/%2f", 3, "broker.uri"),
        ("amqp://127.0.0.1:1/geheim", 3, "broker.uri"),
        ("", 3, "broker.uri"),
    ] {
        for arguments in [&["publish", &command][..], &["watch"]] {
            let output = run(redeemer().env("REDEEMER_BROKER__URI", uri).args(arguments));
            let complaints = err(&output);
            assert_eq!(output.status.code(), Some(code), "{complaints}");
            assert!(complaints.contains(reported), "no {reported:?} in {complaints}");
            assert!(!complaints.contains("geheim"), "{complaints}");
        }
    }
    let wrong = broker::shared().uri().replace("@127", "geheim@127");
    let output = run(redeemer().env("REDEEMER_BROKER__URI", wrong).args(["publish", &command]));
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("ACCESS_REFUSED"), "{}", err(&output));
    assert!(!err(&output).contains("geheim"), "{}", err(&output));
}

#[test]
fn wrong_password_is_reported_by_every_subcommand() {
    let wrong = broker::shared().uri().replace("@127", "geheim@127");
    let programs = Programs::start(broker::shared().uri());
    let more: [&[&str]; 1] = [&["publish", "--wait", "{}"]];
    for arguments in SUBCOMMANDS.into_iter().chain(more) {
        let code = match arguments {
            // They are below; the last one needs no broker, and does not end.
            ["run"] | ["healthcheck"] | ["sandbox", ..] => continue,
            ["check", ..] => 4,
            ["topology", "plan"] | ["schema", ..] => 0,
            _ => 1,
        };
        // Replaying asks the payment API about coupons: its keys are read before the broker is reached.
        let mut command = programs.command(arguments);
        let output = run(command.env("REDEEMER_BROKER__URI", &wrong));
        let text = out(&output) + &err(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(!text.contains("panic") && !text.contains("geheim"), "{arguments:?}: {text}");
        assert!(code == 0 || text.contains("ACCESS_REFUSED"), "{arguments:?}: {text}");
    }
    // The service stays up and tries again; its health says what is missing.
    let address = programs.file("wrong.address", b"");
    let log = programs.file("wrong.log", b"");
    let mut service = programs.command(&["run", "--with-parent", "--admin-address-file"]);
    service.arg(&address).env("REDEEMER_BROKER__URI", &wrong).stdin(Stdio::piped());
    let mut service =
        service.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let admin = until("its address", || {
        Some(std::fs::read_to_string(&address).unwrap()).filter(|address| !address.is_empty())
    });
    let health = |arguments: &[&str]| {
        let mut command = programs.command(&["healthcheck"]);
        command.args(arguments).env("REDEEMER_BROKER__URI", &wrong).env("REDEEMER_ADMIN__LISTEN", &admin);
        let output = run(&mut command);
        (output.status.code(), out(&output) + &err(&output))
    };
    assert_eq!(health(&[]).0, Some(0), "it lives");
    let words = until("the reason", || {
        let (code, words) = health(&["--ready"]);
        assert_eq!(code, Some(4), "{words}");
        words.contains("ACCESS_REFUSED").then_some(words)
    });
    assert!(words.contains("[broker_unavailable]") && !words.contains("geheim"), "{words}");
    terminate(&service);
    assert_eq!(ended(&mut service).code(), Some(0));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("ACCESS_REFUSED") && !log.contains("geheim") && !log.contains("panic"), "{log}");
}

#[test]
fn too_few_open_files_are_refused_before_anything_is_done() {
    for arguments in ["check", "run", "watch"] {
        let limited = format!("ulimit -n 14 && exec \"$0\" {arguments}");
        let output =
            Command::new("sh").args(["-c", &limited, env!("CARGO_BIN_EXE_redeemer")]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments}: {}", err(&output));
        assert!(err(&output).contains("LimitNOFILE"), "{arguments}: {}", err(&output));
        assert!(!err(&output).contains("panicked"), "{arguments}: {}", err(&output));
    }
}

#[test]
fn the_health_of_a_service_is_its_exit_code() {
    let mut programs = Programs::start(broker::shared().uri());
    let listen = programs.admin();
    let check = |arguments: &[&str], code: i32, reported: &str| {
        let mut command = redeemer();
        command.env("REDEEMER_ADMIN__LISTEN", &listen).arg("healthcheck");
        let output = run(command.args(arguments));
        let text = out(&output) + &err(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(reported), "{arguments:?}: no {reported:?} in {text}");
    };
    check(&[], 0, "ok");
    check(&["--ready"], 0, "ok");
    let sandbox = programs.base_url.strip_prefix("http://").unwrap().to_owned();
    check(&["--at", &format!("{sandbox}/_sandbox/health")], 0, "identity");
    check(&["--at", &format!("{sandbox}/_sandbox/nothing")], 4, "/_sandbox/nothing responded with 404");
    check(&["--at", &sandbox], 2, "lacks a path");
    programs.stop_service();
    check(&[], 1, "cannot check ");
}

#[test]
fn every_kind_of_failure_has_its_exit_code() {
    let uri = broker::shared().uri();
    let check = |arguments: &[&str], code: i32, reported: &str| {
        let output = run(redeemer().env("REDEEMER_BROKER__URI", uri).args(arguments));
        let complaints = err(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaints}");
        assert!(complaints.contains(reported), "{arguments:?}: no {reported:?} in {complaints}");
        assert_eq!(out(&output), "", "{arguments:?}");
    };
    check(&["publish"], 2, "required");
    check(&["publish", "{}", "--lines", "x"], 2, "cannot be used with");
    check(&["publish", "{}", "--expect", "redeemed"], 2, "--wait");
    check(&["publish", "{}", "--wait", "--expect", "done"], 2, "must be one of redeemed, refused");
    check(&["publish", "{}", "--deadline", "tomorrow"], 2, "must be a time such as");
    check(&["publish", "{}", "--correlation-id", &"x".repeat(256)], 2, "255 bytes at most");
    check(&["publish", "--lines", "/nowhere/orders.jsonl"], 1, "/nowhere/orders.jsonl cannot be read");
    check(&["publish", "--lines", "/"], 1, "/ is a directory");
    check(&["publish", "@/nowhere"], 1, "/nowhere cannot be read");
    check(&["publish", "Cargo.toml"], 1, "Cargo.toml is a file: say @Cargo.toml");
    check(&["--config", "/nowhere", "publish", "{}"], 3, "/nowhere: cannot be read");
    check(&["watch", "redemption.#", "--brand", "7"], 2, "cannot be used with");
    // Nobody has made these exchanges on this broker.
    check(&["publish", "{}"], 1, "exchange redemption.commands does not exist");
    check(&["watch"], 1, "exchange redemption.results does not exist");
}

#[test]
fn a_file_without_lines_stops_it_and_says_how_far_it_came() {
    let programs = Programs::start(broker::shared().uri());
    let good = programs::command("first").to_string();
    let file = programs.file("orders.jsonl", format!("{good}\n{}", " ".repeat(2 << 20)).as_bytes());
    let output = run(programs.command(&["publish", "--lines"]).arg(file));
    assert_eq!(output.status.code(), Some(1));
    let complaints = err(&output);
    assert!(complaints.contains("orders.jsonl line 2 is longer than 1048576 bytes"), "{complaints}");
    assert!(complaints.contains("of 1 commands confirmed"), "{complaints}");
    until("the first one was worked on", || programs.log().contains("number_first").then_some(()));
}

/// The beginning of a program's environment, as the kernel has it; `None` if this machine does not let us see it.
fn environment(pid: u32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables = bytes.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
    Some(variables.collect())
}

#[test]
fn threads_have_large_stacks_unless_a_size_is_set() {
    let mut seen = 0;
    for (set, expected) in [(None, "RUST_MIN_STACK=8388608"), (Some("4194304"), "RUST_MIN_STACK=4194304")] {
        for arguments in [&["run", "--with-parent"][..], &["parked", "list"], &["watch"]] {
            let mut program = redeemer();
            program.args(arguments).env_remove("RUST_MIN_STACK").stdin(Stdio::piped());
            // A broker that takes connections and says nothing.
            let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = silent.local_addr().unwrap().port();
            program.env("REDEEMER_BROKER__URI", format!("amqp://u:p@127.0.0.1:{port}/%2f"));
            program
                .envs(set.map(|bytes| ("RUST_MIN_STACK", bytes)))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = program.spawn().unwrap();
            let mut shown = None;
            if environment(child.id()).is_some() {
                until("its environment", || {
                    shown = environment(child.id());
                    let has = |text: &Vec<String>| text.iter().any(|one| one.starts_with("RUST_MIN_STACK"));
                    (shown.as_ref().is_some_and(has) || child.try_wait().unwrap().is_some()).then_some(())
                });
            }
            let _ = child.kill();
            child.wait().unwrap();
            match shown {
                Some(shown) => {
                    assert!(shown.iter().any(|one| one == expected), "{arguments:?}: {shown:?}");
                    seen += 1;
                }
                None => eprintln!("NOT shown: the environment of {arguments:?} cannot be seen here"),
            }
        }
    }
    eprintln!("{seen} of 6 seen");
}

/// What somebody else may have put where a file will be written, so that it is written elsewhere.
#[test]
fn links_that_somebody_put_in_place_are_not_written_through() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let programs = Programs::start(broker::shared().uri());
    let dir = programs.file("x", b"").parent().unwrap().to_owned();
    let victim = programs.file("victim", b"untouched");
    let is_untouched = || std::fs::read_to_string(&victim).unwrap() == "untouched";

    let address = dir.join("linked.address");
    symlink(&victim, &address).unwrap();
    let mut service = programs.command(&["run", "--with-parent", "--admin-address-file"]);
    service.arg(&address).env("REDEEMER_ADMIN__LISTEN", "127.0.0.1:0").stdin(Stdio::piped());
    let mut service = service.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the address", || {
        std::fs::read_to_string(&address).ok().filter(|text| text.contains("127.0.0.1:")).map(drop)
    });
    terminate(&service);
    ended(&mut service);
    assert!(is_untouched() && std::fs::symlink_metadata(&address).unwrap().is_file());

    let sandbox = dir.join("linked-sandbox");
    std::fs::create_dir(&sandbox).unwrap();
    let written =
        ["merchant_key.pem", "apiv3_key.txt", "wechatpay_public_key.pem", "identity.json", "redeemer.toml"];
    // The sandbox takes up a folder that it has filled before; what is written leads to a file that is not there.
    let absent = dir.join("absent");
    for name in written {
        symlink(&absent, sandbox.join(name)).unwrap();
    }
    let mut started = redeemer();
    started.args(["sandbox", "--with-parent", "--listen", "127.0.0.1:0", "--dir"]).arg(&sandbox);
    let started = started.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut started = started.unwrap();
    until("the identity", || {
        std::fs::read_to_string(sandbox.join("identity.json"))
            .ok()
            .filter(|text| text.contains("http"))
            .map(drop)
    });
    terminate(&started);
    ended(&mut started);
    assert!(!absent.exists());
    for name in ["merchant_key.pem", "apiv3_key.txt"] {
        let found = std::fs::symlink_metadata(sandbox.join(name)).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600, "{name}: {found:?}");
    }

    let schemas = dir.join("linked-schemas");
    std::fs::create_dir(&schemas).unwrap();
    let output = run(redeemer().args(["schema", "--write"]).arg(&schemas));
    assert!(output.status.success(), "{}", err(&output));
    let names: Vec<_> = std::fs::read_dir(&schemas).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!names.is_empty());
    for name in &names {
        std::fs::remove_file(name).unwrap();
        symlink(&victim, name).unwrap();
    }
    let output = run(redeemer().args(["schema", "--write"]).arg(&schemas));
    assert!(output.status.success(), "{}", err(&output));
    assert!(is_untouched());
    assert!(names.iter().all(|name| std::fs::symlink_metadata(name).unwrap().is_file()));
}
