//! What `redeemer check` finds at fault, in the configuration, the keys and the broker, and that each remedy that it
//! names is a command.

use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use crate::broker;
use crate::broker::Broker;
use crate::programs;
use crate::programs::{Programs, err, out, redeemer, run, unused_dir};
use serde_json::{Value, json};

/// The findings of one check, and its exit code.
struct Checked {
    findings: Vec<Value>,
    code: Option<i32>,
}

fn check(programs: &Programs, environment: &[(&str, &str)]) -> Checked {
    let mut command = programs.command(&["check", "--json"]);
    read(&run(command.envs(environment.iter().copied())))
}

/// What it has found, each fault and warning with its remedy.
fn read(output: &Output) -> Checked {
    let findings = out(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let checked = Checked { findings, code: output.status.code() };
    assert!(!checked.findings.is_empty(), "{}", err(output));
    checked.has_remedies();
    checked
}

/// What remedies begin with.
const COMMANDS: [&str; 28] = [
    "${EDITOR:-vi}",
    "chmod",
    "chown",
    "curl",
    "date",
    "echo",
    "env",
    "exec",
    "export",
    "grep",
    "iconv",
    "id",
    "install",
    "ls",
    "openssl",
    "printf",
    "rabbitmq-diagnostics",
    "rabbitmq-plugins",
    "rabbitmqctl",
    "read",
    "redeemer",
    "sed",
    "stty",
    "sudo",
    "timedatectl",
    "umask",
    "unset",
    "wc",
];

impl Checked {
    /// Details and remedies of what is said about something, at this gravity.
    fn of(&self, what: &str, gravity: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meant = self.findings.iter().filter(|one| one["what"] == what && one["gravity"] == gravity);
        meant.map(|one| (text(&one["detail"]), text(&one["remedy"]))).collect()
    }

    /// Whatever is at fault comes with what to do about it, and so does every warning: with commands, one after the
    /// other, and words only behind a `#`; behind the first command, too, where a connection fails.
    fn has_remedies(&self) {
        for finding in &self.findings {
            let remedy = finding["remedy"].as_str().unwrap_or_default();
            assert_eq!(finding["gravity"] == "ok", remedy.is_empty(), "{finding}");
            let commands = remedy.split_once(" # ").map_or(remedy, |(commands, _)| commands);
            let strict = if finding["what"] == "broker" { 1 } else { usize::MAX };
            for command in commands.split("; ").filter(|_| !remedy.is_empty()).take(strict) {
                let program = command.trim_start_matches('(').split(' ').next().unwrap();
                assert!(COMMANDS.contains(&program), "{program:?} is no command: {finding}");
            }
        }
    }

    fn faults(&self) -> Vec<String> {
        let faults = self.findings.iter().filter(|finding| finding["gravity"] == "fault");
        faults.map(|finding| format!("{}: {}", finding["what"], finding["detail"])).collect()
    }
}

/// What the management API knows of policies and consumers is up to five seconds old.
fn eventually(
    programs: &Programs,
    environment: &[(&str, &str)],
    what: &str,
    holds: impl Fn(&Checked) -> bool,
) -> Checked {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let checked = check(programs, environment);
        if holds(&checked) {
            return checked;
        }
        assert!(Instant::now() < patience, "never: {what}\n{:#?}", checked.findings);
        thread::sleep(Duration::from_millis(500));
    }
}

fn newer(broker: &Broker) -> bool {
    !broker.ctl(&["version"]).trim().starts_with("3.1")
}

#[test]
fn check_reads_broker_settings_by_the_management_api() {
    let broker = Broker::start_as(&["--plugin", "rabbitmq_management"]);
    let mut programs = Programs::start(broker.uri());
    let names = |what: &str| format!("{}.{what}", programs.prefix);
    let (commands, parked, retry) = (names("commands"), names("parked"), names("retry"));

    // Without the API it says what it could not see, and how to look.
    let blind = check(&programs, &[]);
    assert_eq!(blind.code, Some(0), "{:?}", blind.faults());
    let reported = &blind.of("broker settings", "warning")[0].1;
    for command in ["rabbitmqctl list_queues name policy", "rabbitmq-diagnostics alarms", "consumer_timeout"]
    {
        assert!(reported.contains(command), "{reported}");
    }

    let management = broker.management();
    let seeing = [("REDEEMER_BROKER__MANAGEMENT_URI", management.as_str())];
    let fine = check(&programs, &seeing);
    assert_eq!(fine.code, Some(0), "{:?}", fine.faults());
    assert!(
        fine.of("broker settings", "ok")[0].0.starts_with("no alarm; every queue"),
        "{:?}",
        fine.findings
    );

    // A policy that takes away, another that does not, and one by the operator.
    broker.ctl(&[
        "set_policy",
        "tight",
        &format!("^{}$", commands.replace('.', "\\.")),
        r#"{"delivery-limit": 3, "max-length": 1000, "overflow": "drop-head", "queue-leader-locator": "balanced"}"#,
        "--apply-to",
        "queues",
    ]);
    broker.ctl(&[
        "set_operator_policy",
        "brief",
        &format!("^{}", retry.replace('.', "\\.")),
        r#"{"message-ttl": 1000}"#,
        "--apply-to",
        "queues",
    ]);
    let seen = eventually(&programs, &seeing, "four policies' worth of faults", |checked| {
        checked.of("policy", "fault").len() == 8
    });
    assert_eq!(seen.code, Some(4));
    let faults = seen.of("policy", "fault");
    let about = |part: &str| {
        faults
            .iter()
            .find(|(detail, _)| detail.contains(part))
            .unwrap_or_else(|| panic!("{part}: {faults:#?}"))
    };
    let wanted = format!("queue {commands}: policy tight sets delivery-limit to 3, must be 20 or more");
    assert_eq!(about("delivery-limit").0, wanted);
    assert!(about("delivery-limit").1.starts_with("rabbitmqctl clear_policy -p / tight #"), "{faults:#?}");
    assert!(about("max-length").0.ends_with("to 1000, must be nothing"), "{faults:#?}");
    assert!(about("overflow").0.ends_with("to \"drop-head\", must be \"reject-publish\""), "{faults:#?}");
    let brief = format!("queue {retry}.2h: policy brief sets message-ttl to 1000, must be 7200000 or more");
    assert_eq!(about(".2h").0, brief);
    assert!(about(".2h").1.starts_with("rabbitmqctl clear_operator_policy -p / brief #"), "{faults:#?}");
    broker.ctl(&["clear_policy", "tight"]);
    broker.ctl(&["clear_operator_policy", "brief"]);
    eventually(&programs, &seeing, "no fault any more", |checked| checked.code == Some(0));

    // A binding that is gone is something AMQP cannot ask for.
    let unbind = format!(
        "rabbit_binding:remove({{binding, {{resource, <<\"/\">>, exchange, <<\"{parked}\">>}}, <<>>, \
         {{resource, <<\"/\">>, queue, <<\"{parked}\">>}}, []}}, <<\"test\">>)."
    );
    broker.ctl(&["eval", &unbind]);
    let seen = eventually(&programs, &seeing, "the binding is missed", |checked| checked.code == Some(4));
    let (detail, remedy) = &seen.of("topology", "fault")[0];
    assert!(detail.starts_with(&format!("binding of {parked} to {parked} is missing")), "{detail}");
    assert_eq!(remedy, "redeemer topology apply");
    assert_eq!(run(&mut programs.command(&["topology", "apply"])).status.code(), Some(0));
    eventually(&programs, &seeing, "bound again", |checked| checked.code == Some(0));

    // A consumer timeout: newer brokers show it for each consumer, older ones not at all.
    if newer(&broker) {
        broker.ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 20000)."]);
        programs.stop_service();
        programs.start_service();
        let seen = eventually(&programs, &seeing, "a short timeout", |checked| {
            !checked.of("consumer timeout", "fault").is_empty()
        });
        let (detail, remedy) = &seen.of("consumer timeout", "fault")[0];
        assert!(detail.contains("takes a command back after 20000 ms, must be well over"), "{detail}");
        assert!(remedy.contains("consumer_timeout = 1800000"), "{remedy}");
        broker.ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1800000)."]);
        broker.ctl(&[
            "set_policy",
            "impatient",
            "commands",
            r#"{"consumer-timeout": 9000}"#,
            "--apply-to",
            "queues",
        ]);
        let seen = eventually(&programs, &seeing, "the policy's timeout", |checked| {
            checked
                .of("policy", "fault")
                .iter()
                .any(|(detail, _)| detail.contains("consumer-timeout to 9000"))
        });
        assert_eq!(seen.code, Some(4));
        broker.ctl(&["clear_policy", "impatient"]);
    } else {
        let reported = &check(&programs, &seeing).of("consumer timeout", "warning")[0].1;
        assert!(
            reported.contains("rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'"),
            "{reported}"
        );
    }

    // An alarm is named with its node, though publishing itself only hangs.
    broker.ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    let environment = [seeing[0], ("REDEEMER_BROKER__CONNECT_TIMEOUT", "1s")];
    let seen =
        eventually(&programs, &environment, "the alarm", |checked| !checked.of("alarm", "fault").is_empty());
    let (detail, remedy) = &seen.of("alarm", "fault")[0];
    assert!(detail.starts_with("memory alarm on redeemer@localhost"), "{detail}");
    assert_eq!(remedy, "rabbitmq-diagnostics -n redeemer@localhost memory_breakdown");
    broker.ctl(&["set_vm_memory_high_watermark", "0.9"]);
    eventually(&programs, &seeing, "calm", |checked| checked.of("alarm", "fault").is_empty());
}

#[test]
fn who_may_not_look_is_reported_which_right_is_missing() {
    let broker = Broker::start_as(&["--plugin", "rabbitmq_management"]);
    let programs = Programs::start(broker.uri());
    broker.ctl(&["add_user", "plain", "a%b/c@d"]);
    broker.ctl(&["set_permissions", "plain", ".*", ".*", ".*"]);
    let uri = broker.uri_of("plain", "a%25b%2Fc%40d");
    let management = broker.management();
    let environment =
        [("REDEEMER_BROKER__URI", uri.as_str()), ("REDEEMER_BROKER__MANAGEMENT_URI", &management)];
    let seen = check(&programs, &environment);
    let (detail, remedy) = &seen.of("broker settings", "fault")[0];
    assert!(detail.contains("rejects user plain"), "{detail}");
    assert_eq!(remedy, "rabbitmqctl set_user_tags plain management");
    assert!(
        seen.of("broker settings", "warning")[0].0.contains("not visible from here"),
        "and what it could not see"
    );
    // The remedy is one.
    broker.ctl(&["set_user_tags", "plain", "management"]);
    let seen = check(&programs, &environment);
    assert_eq!(seen.code, Some(0), "{:?}", seen.faults());

    // A user for the API alone, in its URI.
    broker.ctl(&["set_user_tags", "plain"]);
    broker.ctl(&["add_user", "looker", "l/k"]);
    broker.ctl(&["set_user_tags", "looker", "monitoring"]);
    broker.ctl(&["set_permissions", "looker", "^$", "^$", "^$"]);
    let looker = management.replace("http://", "http://looker:l%2Fk@");
    let seen = check(&programs, &[environment[0], ("REDEEMER_BROKER__MANAGEMENT_URI", &looker)]);
    assert_eq!(seen.code, Some(0), "{:?}", seen.faults());

    // Nobody answers.
    let seen = check(&programs, &[("REDEEMER_BROKER__MANAGEMENT_URI", "http://127.0.0.1:1")]);
    let (detail, _) = &seen.of("broker settings", "fault")[0];
    assert!(detail.starts_with("the management API at 127.0.0.1:1 does not respond"), "{detail}");
}

/// A topology that nobody has made is one fact with one remedy, however many objects it has.
#[test]
fn missing_topology_is_one_finding_with_one_remedy() {
    let broker = broker::shared();
    let programs = Programs::start(broker.uri());
    let names = ["commands", "retry", "results", "unrouted", "parked", "dead", "instances"];
    let names = names.map(|name| {
        (
            format!("REDEEMER_BROKER__NAMES__{}", name.to_uppercase()),
            format!("{}.fresh.{name}", programs.prefix),
        )
    });
    for (mode, gravity, code) in [("create", "warning", 0), ("verify", "fault", 4)] {
        let mut environment: Vec<_> =
            names.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        environment.push(("REDEEMER_BROKER__TOPOLOGY", mode));
        let seen = check(&programs, &environment);
        assert_eq!(seen.code, Some(code), "{:#?}", seen.findings);
        let reported = seen.of("topology", gravity);
        assert!(
            reported.len() == 1 && reported[0].1.starts_with("redeemer topology apply"),
            "{:#?}",
            seen.findings
        );
        let ids: Vec<_> =
            seen.findings.iter().filter(|one| one["gravity"] != "ok").map(|one| &one["id"]).collect();
        let missing = ids.iter().filter(|id| **id == "topology_missing").count();
        assert_eq!(missing, 1, "{ids:?}");
        assert!(ids.len() <= 3, "one cause, few findings: {:#?}", seen.findings);
    }
}

/// Each fault of the configuration is a finding, with the command that fixes it there where it was made.
#[test]
fn check_reports_configuration_faults_like_any_other() {
    let dir = unused_dir("check");
    let file = dir.join("redeemer.toml");
    let at = file.display().to_string();
    let look = |text: &str, environment: &[(&str, &str)]| {
        std::fs::write(&file, text).unwrap();
        let mut command = redeemer();
        let output =
            run(command.args(["check", "--json", "--config", &at]).envs(environment.iter().copied()));
        let seen = read(&output);
        assert_eq!(seen.code, Some(3), "{:#?}", seen.findings);
        assert!(
            seen.findings.iter().all(|finding| finding["what"] == "configuration"),
            "{:#?}",
            seen.findings
        );
        seen.of("configuration", "fault")
    };
    let text = "surprise = 1\n[broker]\nprefetch = \"many\"\n[broker.names]\ncomands = \"x\"\n";
    let elsewhere = [("REDEEMER_CONCURRENCY__COMMANDS", "-1"), ("REDEEMER_SHUTDOWN__DRIAN", "1s")];
    let pair = |detail: &str, remedy: String| (detail.to_owned(), remedy);
    let mut reported = look(text, &elsewhere);
    reported.sort();
    let unknown = "is not a key; see config.toml for all of them";
    let number = "must be a whole number, not a text in quotes";
    assert_eq!(
        reported,
        [
            pair(&format!("broker.names.comands: {unknown}"), format!("sed -i '5s/^/# /' {at} # {unknown}")),
            pair(
                &format!("broker.prefetch: {number}"),
                format!(
                    "printf 'broker.prefetch: '; read -r VALUE; sed -i \"3c prefetch = $VALUE\" {at} # {number}"
                ),
            ),
            pair(
                "concurrency.commands: must not be negative",
                "printf 'concurrency.commands: '; read -r REDEEMER_CONCURRENCY__COMMANDS; export \
                 REDEEMER_CONCURRENCY__COMMANDS # must not be negative"
                    .to_owned(),
            ),
            pair(
                &format!("shutdown.drian: {unknown}"),
                format!("unset REDEEMER_SHUTDOWN__DRIAN # {unknown}"),
            ),
            pair(&format!("surprise: {unknown}"), format!("sed -i '1s/^/# /' {at} # {unknown}")),
        ]
    );
    // A whole text that cannot be read; a file that is not there.
    let reported = look("[broker]\nuri = \"amqp://u:geheim@h\n", &[]);
    assert!(
        reported[0].0.contains("is not TOML at line 2") && !reported[0].0.contains("geheim"),
        "{reported:?}"
    );
    assert_eq!((reported.len(), &reported[0].1), (1, &format!("${{EDITOR:-vi}} +2 {at}")));
    let missing = dir.join("missing.toml").display().to_string();
    let absent = read(&run(redeemer().args(["check", "--json", "--config", &missing])));
    assert_eq!(absent.code, Some(3));
    let reported = absent.of("configuration", "fault");
    assert!(
        reported.len() == 1 && reported[0].0.starts_with(&format!("{missing}: cannot be read")),
        "{reported:?}"
    );

    // Without a file; and people read the same as machines.
    let bare = |name: &str, value: &str| {
        let seen = read(&run(redeemer().args(["check", "--json"]).env(name, value)));
        assert_eq!((seen.code, seen.findings.len()), (Some(3), 1), "{:#?}", seen.findings);
        seen.of("configuration", "fault").remove(0).1
    };
    let asks = |key: &str, variable: &str| format!("printf '{key}: '; read -r {variable}; export {variable}");
    let together = format!(
        "{}; {} # must be set together",
        asks("broker.client_certificate_file", "REDEEMER_BROKER__CLIENT_CERTIFICATE_FILE"),
        asks("broker.client_key_file", "REDEEMER_BROKER__CLIENT_KEY_FILE")
    );
    assert_eq!(bare("REDEEMER_BROKER__CLIENT_KEY_FILE", "key.pem"), together);
    let patience = asks("retry.in_process_max", "REDEEMER_RETRY__IN_PROCESS_MAX");
    assert_eq!(
        bare("REDEEMER_RETRY__QUERY_DELAY", "5m"),
        patience + " # must be twice retry.query_delay or more"
    );
    let limit = asks("broker.delivery_limit", "REDEEMER_BROKER__DELIVERY_LIMIT");
    assert!(bare("REDEEMER_BROKER__DELIVERY_LIMIT", "99999999999").starts_with(&limit));
    let plain = run(redeemer().arg("check").env("REDEEMER_BROKER__PREFETCH", "0"));
    assert_eq!(plain.status.code(), Some(3));
    assert_eq!(
        out(&plain),
        "FAULT   configuration [config_value]: broker.prefetch: must be 1 to 2000\n        \
         remedy: printf 'broker.prefetch: '; read -r REDEEMER_BROKER__PREFETCH; export REDEEMER_BROKER__PREFETCH # must \
         be 1 to 2000\n"
    );
    assert_eq!(err(&plain), "redeemer: check: 1 fault\n");
    std::fs::remove_dir_all(dir).unwrap();
}

/// Each fault of a key or of the clock, with the command that fixes it.
#[test]
fn what_is_wrong_with_keys_and_clock_is_reported_with_a_command() {
    let broker = broker::shared();
    let programs = Programs::start(broker.uri());
    let dir = programs.file("key.pem", b"").parent().unwrap().to_owned();
    let sandbox = |name: &str| std::fs::read(dir.join("sandbox").join(name)).unwrap();
    let only = |environment: &[(&str, &str)], part: &str, remedy: &str| {
        let seen = check(&programs, environment);
        assert_eq!(seen.code, Some(4));
        let reported: Vec<_> =
            seen.of("keys", "fault").into_iter().chain(seen.of("clock", "fault")).collect();
        assert!(
            reported.iter().any(|(detail, fixes)| detail.contains(part) && fixes.contains(remedy)),
            "{part:?} and {remedy:?} in {reported:#?}"
        );
    };
    let at = |path: &std::path::Path| path.display().to_string();

    let open = programs.file("open.pem", &sandbox("merchant_key.pem"));
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let key = "REDEEMER_WECHAT__MERCHANT_KEY_FILE";
    only(&[(key, &at(&open))], "can be read by others", &format!("chmod 600 {}", at(&open)));
    only(&[(key, "/nowhere/key.pem")], "cannot read", "printf 'wechat.merchant_key_file: '");

    // Another key's certificate; and the right one, which has a serial and an end.
    let other = programs.file("other.key", b"");
    let certificate = programs.file("other.pem", b"");
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=other",
            "-days",
            "3",
            "-keyout",
        ])
        .arg(&other)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = "REDEEMER_WECHAT__MERCHANT_CERTIFICATE_FILE";
    only(&[(file, &at(&certificate))], "does not belong to the merchant key", "read -r ");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let pair = [(file, at(&certificate)), (key, at(&other))];
    let pair: Vec<_> = pair.iter().map(|(name, path)| (*name, path.as_str())).collect();
    let seen = check(&programs, &pair);
    let ends = seen.of("keys", "warning");
    assert!(ends[0].0.starts_with("the merchant API certificate ends at"), "{ends:?}");
    let calls = seen.of("payment API", "fault");
    assert!(calls[0].0.contains("rejects our signature (401)"), "{calls:?}");

    let rightly = [(file, dir.join("sandbox/merchant_cert.pem"))];
    let rightly: Vec<_> = rightly.iter().map(|(name, path)| (*name, path.to_str().unwrap())).collect();
    let seen = check(&programs, &rightly);
    assert_eq!(seen.code, Some(0), "{:?}", seen.faults());
    assert!(
        seen.of("keys", "ok")
            .iter()
            .any(|(reported, _)| reported.contains("belongs to the key, valid until"))
    );

    // What nobody warns of, what the alert wakes somebody for, and what ends every call.
    put(&programs, "clock", &json!({"offset_seconds": 20}));
    assert_eq!(check(&programs, &[]).of("clock", "ok").len(), 1);
    put(&programs, "clock", &json!({"offset_seconds": 60}));
    let off = check(&programs, &[]);
    assert_eq!(off.code, Some(0), "{:?}", off.faults());
    assert!(off.of("clock", "warning")[0].1.contains("timedatectl set-ntp true"), "{:?}", off.findings);
    put(&programs, "clock", &json!({"offset_seconds": -900}));
    only(&[], "this machine's clock differs", "timedatectl set-ntp true");
}

/// Sets something at the sandbox.
pub(crate) fn put(programs: &Programs, what: &str, body: &Value) {
    let body = body.to_string();
    let request = format!(
        "PUT /_sandbox/{what} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = programs::talk(programs.base_url.trim_start_matches("http://"), &request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
}

#[test]
fn a_signed_answer_is_no_proof_that_all_is_well() {
    let broker = broker::shared();
    let programs = Programs::start(broker.uri());
    let check_status = |status: u16, code: &str, gravity: &str, part: &str| {
        let fault = json!({"kind": "status", "status": status, "code": code, "signed": true});
        put(&programs, "faults", &json!({"rules": [{ "fault": fault }]}));
        let seen = check(&programs, &[]);
        let reported = seen.of("payment API", gravity);
        assert!(reported.len() == 1 && reported[0].0.contains(part), "{status} {code}: {:#?}", seen.findings);
        assert_eq!(seen.code, Some(if gravity == "fault" { 4 } else { 0 }));
    };
    check_status(429, "FREQUENCY_LIMITED", "warning", "it did not take the call now");
    check_status(500, "SYSTEM_ERROR", "fault", "a server error");
    check_status(403, "NO_AUTH", "warning", "not authorized");
    check_status(404, "NOT_FOUND", "ok", "responded with 404");
    // What would meet every command alike.
    check_status(400, "PARAM_ERROR", "fault", "PARAM_ERROR");
    check_status(400, "INVALID_REQUEST", "fault", "INVALID_REQUEST");
    check_status(403, "REQUEST_BLOCKED", "fault", "REQUEST_BLOCKED");
    check_status(405, "METHOD_NOT_ALLOWED", "fault", "unexpected");
    check_status(415, "UNSUPPORTED", "fault", "unexpected");
}

#[test]
fn check_downloads_certificates_if_nothing_else_verifies() {
    let broker = broker::shared();
    let programs = Programs::start(broker.uri());
    let dir = programs.file("x", b"").parent().unwrap().to_owned();
    let config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
    let keys = config.split_once("[wechat.public_keys]").expect("it holds public keys").0;
    let apiv3 = dir.join("sandbox/apiv3_key.txt");
    let only_downloads = programs.file("downloads.toml", keys.as_bytes());
    let look = |key: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_redeemer"));
        command.arg("--config").arg(&only_downloads).args(["check", "--json"]);
        command.env("REDEEMER_WECHAT__APIV3_KEY_FILE", key);
        let output = run(&mut command);
        read(&output)
    };
    let fine = look(&apiv3);
    assert_eq!(fine.code, Some(0), "{:?}", fine.faults());
    assert!(
        fine.of("keys", "ok").iter().any(|(reported, _)| reported.ends_with(", downloaded")),
        "{:?}",
        fine.findings
    );
    // Beside another key they are downloaded as well: only then is it known which serials are held.
    let mut serials = fine.of("keys", "ok").into_iter().filter_map(|(reported, _)| {
        let serial = reported.strip_prefix("platform certificate ")?.strip_suffix(", downloaded")?;
        Some(serial.to_owned())
    });
    let serial = serials.next_back().unwrap();
    let apiv3_at = apiv3.display().to_string();
    let both = |asked: &str| {
        let asked = ("REDEEMER_WECHAT__VERIFICATION_SERIAL", asked);
        check(&programs, &[("REDEEMER_WECHAT__APIV3_KEY_FILE", &apiv3_at), asked])
    };
    for (asked, code) in [(serial.as_str(), 0), ("", 0), ("ABCDEF", 4), (&serial[1..], 4)] {
        let seen = both(asked);
        assert_eq!(seen.code, Some(code), "{asked}: {:#?}", seen.findings);
        let not_held = seen.findings.iter().filter(|one| one["id"] == "serial_not_held").count();
        assert_eq!(not_held == 1, code == 4, "{asked}: {:#?}", seen.findings);
    }
    let other = programs.file("other_apiv3.txt", b"0123456789abcdef0123456789abcdef");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let wrong = look(&other);
    let reported = wrong.of("keys", "fault");
    assert!(reported.iter().any(|(detail, _)| detail.contains("could not be downloaded")), "{reported:?}");
    // With a key beside them, that is no fault yet.
    let beside = check(&programs, &[("REDEEMER_WECHAT__APIV3_KEY_FILE", &other.display().to_string())]);
    assert_eq!(beside.code, Some(0), "{:?}", beside.faults());
    assert_eq!(beside.findings.iter().filter(|one| one["id"] == "download_apiv3_key").count(), 1);
}

/// The lock of operators is a queue of its own: a user who may read everything may lack that alone.
#[test]
fn missing_right_to_the_operators_lock_is_a_warning() {
    let broker = broker::shared();
    let programs = Programs::start(broker.uri());
    let user = format!("{}.operator", programs.prefix);
    broker.ctl(&["add_user", &user, "geheim"]);
    let uri = broker.uri_of(&user, "geheim");
    let environment = [("REDEEMER_BROKER__URI", uri.as_str()), ("REDEEMER_BROKER__TOPOLOGY", "verify")];
    let lock = |seen: &Checked| -> Vec<String> {
        let meant = seen.findings.iter().filter(|one| one["id"] == "operator_lock");
        meant.map(|one| one["remedy"].as_str().unwrap().to_owned()).collect()
    };
    broker.ctl(&["set_permissions", &user, "^$", ".*", ".*"]);
    let seen = check(&programs, &environment);
    let remedies = lock(&seen);
    assert_eq!((seen.code, remedies.len()), (Some(0), 1), "{:#?}", seen.findings);
    // The remedy is one, and grants no more than that.
    let words: Vec<_> = remedies[0].split('\'').collect();
    assert_eq!((words[0], words[3]), ("rabbitmqctl set_permissions -p ", user.as_str()), "{words:?}");
    assert_eq!(words[5], format!("^({}\\.parked\\.lock)$", programs.prefix));
    broker.ctl(&["set_permissions", &user, words[5], words[7], words[9]]);
    let seen = check(&programs, &environment);
    assert_eq!((seen.code, lock(&seen).len()), (Some(0), 0), "{:#?}", seen.findings);
    assert!(seen.of("permissions", "warning").is_empty(), "{:#?}", seen.findings);
    let listed = run(programs.command(&["parked", "list"]).envs(environment));
    assert_eq!(listed.status.code(), Some(0), "{}", err(&listed));
    broker.ctl(&["delete_user", &user]);
}
