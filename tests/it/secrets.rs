//! What a full run writes down: nothing that opens a door, and no user or coupon whole.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use crate::broker;
use crate::programs;
use crate::programs::{Programs, err, get, out, run, until};
use serde_json::{Value, json};

const OPENID: &str = "oVeryPrivatePerson0123456789";
const TOKEN: &str = "Bearer-Kollektor-4711-geheim";
const CONSOLE_TOKEN: &str = "9d1f-console-geheim-4712-0123456789ab";
/// What somebody typed who meant the token.
const NEARLY: &str = "9d1f-console-geheim-4712-0123456789";

fn command(name: &str) -> Value {
    let mut command = programs::command(name);
    command["openid"] = json!(OPENID);
    command["coupon_code"] = json!(code(name));
    command
}

fn code(name: &str) -> String {
    format!("auto_PRIVATE_COUPON_{name}_0123")
}

/// Every text that must stand nowhere, by what it is.
fn forbidden(programs: &Programs, names: &[&str]) -> BTreeMap<String, String> {
    let dir = programs.file("x", b"").parent().unwrap().join("sandbox");
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let mut forbidden = BTreeMap::new();
    for (nth, line) in read("merchant_key.pem").lines().enumerate() {
        forbidden.insert(format!("line {nth} of the merchant key"), line.to_owned());
    }
    forbidden.insert("the APIv3 key".to_owned(), read("apiv3_key.txt").trim().to_owned());
    forbidden.insert("the broker's password".to_owned(), broker::shared().password().to_owned());
    forbidden.insert("the collector's token".to_owned(), TOKEN.to_owned());
    forbidden.insert("an openid".to_owned(), OPENID.to_owned());
    for name in names {
        forbidden.insert(format!("the coupon of {name}"), code(name));
    }
    forbidden
}

/// Logs in at the console with a mistyped token first. Gives the session's cookie.
fn log_in(admin: &str) -> String {
    let login = |token: &str| {
        let form = format!("token={token}&operator=lin");
        let head = format!("POST /parked/login HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n");
        let kind = "content-type: application/x-www-form-urlencoded";
        let request = format!("{head}{kind}\r\ncontent-length: {}\r\n\r\n{form}", form.len());
        programs::talk(admin, &request).unwrap()
    };
    let refused = login(NEARLY);
    assert!(refused.starts_with("HTTP/1.1 403") && !refused.contains(NEARLY), "{refused}");
    let answer = login(CONSOLE_TOKEN);
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a session");
    cookie.split(';').next().unwrap().to_owned()
}

fn set_faults(programs: &Programs, rules: &Value) {
    let body = json!({ "rules": rules }).to_string();
    let length = body.len();
    let request = format!(
        "PUT /_sandbox/faults HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    let answer = programs::talk(programs.base_url.trim_start_matches("http://"), &request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
}

/// What was asked about a coupon, in order.
fn calls(programs: &Programs, coupon_code: &str) -> Vec<String> {
    let answer = get(programs.base_url.trim_start_matches("http://"), "/_sandbox/ledger").unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let ledger: Value = serde_json::from_str(body).unwrap();
    let attempts = ledger["attempts"].as_array().unwrap().iter();
    let of_coupon = attempts.filter(|attempt| attempt["coupon_code"] == coupon_code);
    of_coupon.map(|attempt| attempt["operation"].as_str().unwrap().to_owned()).collect()
}

/// Runs the service with everything logged that our own code logs, through every kind of ending, and gives the log and
/// all that its port shows.
fn full_run(format: &str) {
    let mut programs = Programs::start(broker::shared().uri());
    programs.stop_service();
    let dir = programs.file("x", b"").parent().unwrap().to_owned();
    let apiv3 = dir.join("sandbox/apiv3_key.txt").display().to_string();
    let console_token = programs.file("console_token", CONSOLE_TOKEN.as_bytes());
    fs::set_permissions(&console_token, fs::Permissions::from_mode(0o600)).unwrap();
    let console_token = console_token.display().to_string();
    let environment = [
        ("REDEEMER_LOG__FORMAT", format),
        ("REDEEMER_LOG__FILTER", "info,redeemer=trace,lapin=off"),
        ("REDEEMER_WECHAT__APIV3_KEY_FILE", &apiv3),
        ("REDEEMER_ADMIN__CONSOLE_TOKEN_FILE", &console_token),
        ("REDEEMER_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("REDEEMER_TELEMETRY__OTLP_EVERY", "100ms"),
        ("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization={TOKEN}")),
        // A command that waited in a queue is sent again only once the longest call that anybody may have begun is over.
        ("REDEEMER_WECHAT__READ_TIMEOUT", "1500ms"),
        ("REDEEMER_WECHAT__TOTAL_TIMEOUT", "2s"),
        ("REDEEMER_RETRY__INITIAL", "50ms"),
        ("REDEEMER_RETRY__QUERY_DELAY", "100ms"),
        ("REDEEMER_RETRY__IN_PROCESS_MAX", "500ms"),
        ("REDEEMER_RETRY__DELAYS", "[\"200ms\", \"400ms\"]"),
    ];
    let log = dir.join("full.log");
    let address = dir.join("full.address");
    let mut service = programs.command(&["run", "--with-parent", "--admin-address-file"]);
    service.arg(&address).envs(environment).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut service = service.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let admin = until("the service is ready", || {
        let address = fs::read_to_string(&address).ok()?;
        get(&address, "/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200")).map(|_| address)
    });

    set_faults(
        &programs,
        &json!([
            {"coupon_code": code("html"), "operation": "use", "first_attempts": 1, "fault": {"kind": "html_502"}},
            {"coupon_code": code("late"), "first_attempts": 4, "fault": {"kind": "cut_before_effect"}},
            {"coupon_code": code("never"), "fault": {"kind": "no_signature"}},
            {"coupon_code": code("probe"), "operation": "use", "first_attempts": 1, "fault": {"kind": "probe_signature"}},
            {"coupon_code": code("wrong"), "operation": "use", "first_attempts": 1, "fault": {"kind": "wrong_number"}},
        ]),
    );
    let mut again = command("used");
    again["out_request_no"] = json!("number_another");
    let mut unknown = command("unknown");
    unknown["misspelled"] = json!(OPENID);
    // Where nobody looks for one: as the name of a field.
    unknown[OPENID] = json!("");
    let mut long = command("long");
    long["openid"] = json!(format!("{OPENID} {OPENID}"));
    let mut wrong = command("typed");
    wrong["brand_id"] = json!({ OPENID: code("typed") });
    let names = ["used", "html", "late", "probe", "wrong", "never", "unknown", "long", "typed"];
    let lines: Vec<_> = ["used", "html", "late", "probe", "wrong"].iter().map(|name| command(name)).collect();
    let lines = lines.into_iter().chain([again, unknown, long, wrong]).map(|line| line.to_string());
    let lines = lines.chain([format!("{{\"openid\": \"{OPENID}\", ")]).collect::<Vec<_>>().join("\n");
    let file = programs.file("commands.jsonl", lines.as_bytes());
    let output = run(programs.command(&["publish", "--wait", "--lines"]).arg(&file));
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output).lines().count(), 10);
    let never = command("never").to_string();
    let output = run(&mut programs.command(&["publish", "--wait", "--deadline", "1s", &never]));
    assert!(out(&output).contains("unresolved"), "{}\n{}", out(&output), err(&output));

    let mut shown: String = ["/metrics", "/readyz", "/livez", "/", "/status.json", "/runbook", "/parked"]
        .iter()
        .filter_map(|path| get(&admin, path))
        .collect();
    assert!(shown.contains("name=\"token\""), "the console is enabled and asks for the token");
    let cookie = log_in(&admin);
    let inside =
        format!("GET /parked HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncookie: {cookie}\r\n\r\n");
    // It is parked once its event has gone out.
    let inside = until("the command at the console", || {
        programs::talk(&admin, &inside).filter(|page| page.contains("number_never"))
    });
    shown.push_str(&inside);
    let calls = calls(&programs, &code("html"));
    programs::terminate(&service);
    assert_eq!(programs::ended(&mut service).code(), Some(0));
    let log = fs::read_to_string(&log).unwrap();
    let checked = run(programs.command(&["check"]).envs(environment));
    let reported = format!("{}{}", out(&checked), err(&checked));
    let mut forbidden = forbidden(&programs, &names);
    let (_, session) = cookie.split_once('=').unwrap();
    for (what, secret) in [("token", CONSOLE_TOKEN), ("token, mistyped", NEARLY), ("session", session)] {
        forbidden.insert(format!("the console's {what}"), secret.to_owned());
    }
    let mut whole = String::new();
    for (text, place) in [(&log, "the log"), (&shown, "the admin port"), (&reported, "check")] {
        for (what, secret) in &forbidden {
            if let Some(line) = text.lines().find(|line| line.contains(secret.as_str())) {
                whole.push_str(&format!("{what} stands in {place}: {line}\n"));
            }
        }
    }
    assert!(whole.is_empty(), "{whole}");
    assert!(log.contains("attempt"), "our own code reported everything:\n{log}");
    assert!(log.contains("the collector does not take spans"), "{log}");
    settled_lines(format, &log, &calls);
}

/// One line per settled command, with what an operator searches by. `calls` are those about the coupon that met a page
/// of HTML.
fn settled_lines(format: &str, log: &str, calls: &[String]) {
    // The page, two looks at least, the answer. What was handed back, as while the first call goes alone, is looked at
    // before the page as well.
    let uses: Vec<_> = (0..calls.len()).filter(|at| calls[*at] == "use").collect();
    assert!(
        matches!(uses[..], [page, answer] if answer > page + 2 && answer + 1 == calls.len()),
        "{calls:?}"
    );
    if format == "plain" {
        for wanted in [
            "outcome=\"redeemed\" out_request_no=number_html coupon=au…0123 openid=oV…6789 brand_id=120344",
            "outcome=\"refused\" out_request_no=number_another",
            "outcome=\"unresolved\" out_request_no=number_never",
            "delayed; retried later",
        ] {
            assert!(log.contains(wanted), "no {wanted:?} in\n{log}");
        }
        return;
    }
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let settled: Vec<_> = lines.iter().filter(|line| line.get("outcome").is_some()).collect();
    let of = |number: &str| {
        let lines: Vec<_> = settled.iter().filter(|line| line["out_request_no"] == number).collect();
        assert_eq!(lines.len(), 1, "{number}: {lines:#?}");
        (*lines[0]).clone()
    };
    let html = of("number_html");
    for (key, wanted) in [
        ("outcome", json!("redeemed")),
        ("coupon", json!("au…0123")),
        ("openid", json!("oV…6789")),
        ("brand_id", json!("120344")),
        ("established_by", json!("response")),
        ("attempts", json!(calls.len())),
    ] {
        assert_eq!(html[key], wanted, "{key}: {html:#}");
    }
    assert!(html["age_ms"].as_u64().is_some_and(|age| age > 0), "{html:#}");
    assert!(html["request_id"].as_str().is_some_and(|id| id.len() > 8), "{html:#}");
    assert_eq!(html["trace_id"].as_str().map(str::len), Some(32), "{html:#}");
    assert_eq!(of("number_another")["reason"], "used_by_another");
    let never = of("number_never");
    assert_eq!((&never["outcome"], &never["level"]), (&json!("unresolved"), &json!("ERROR")));
    let invalid = settled.iter().filter(|line| line["outcome"] == "invalid").count();
    assert_eq!((settled.len(), invalid), (11, 4), "{settled:#?}");
}

#[test]
fn a_plain_log_and_what_the_port_shows_hold_no_secret() {
    full_run("plain");
}

#[test]
fn a_json_log_has_one_line_per_settled_command_and_no_secret() {
    full_run("json");
}

/// Kills a program by SIGABRT, which would have it dump its core, where the limit of its shell allows that.
fn dumps_core(program: &str, arguments: &[&str], is_up: impl Fn() -> bool) -> bool {
    let dir = programs::unused_dir("core");
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\"", program]).args(arguments);
    let shell = shell.current_dir(&dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = shell.spawn().unwrap();
    until("the program is up", || is_up().then_some(()));
    let sent = Command::new("sh").args(["-c", "kill -ABRT \"$0\"", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let status = programs::ended(&mut child);
    assert_eq!(status.signal(), Some(6), "{status}");
    fs::remove_dir_all(dir).unwrap();
    status.core_dumped()
}

#[test]
fn aborted_program_leaves_no_core() {
    let dir = programs::unused_dir("aborted");
    let identity = dir.join("sandbox/identity.json");
    let sandbox = dir.join("sandbox");
    let arguments =
        ["sandbox", "--with-parent", "--listen", "127.0.0.1:0", "--dir", sandbox.to_str().unwrap()];
    let is_up = || fs::read_to_string(&identity).is_ok_and(|text| text.contains("http://"));
    assert!(!dumps_core(env!("CARGO_BIN_EXE_redeemer"), &arguments, is_up));
    let ready = dir.join("ready");
    let script = format!("touch {} && exec sleep 60", ready.display());
    if !dumps_core("sh", &["-c", &script], || ready.exists()) {
        eprintln!("NOT shown: this machine writes no core of any program");
    }
    fs::remove_dir_all(dir).unwrap();
}
