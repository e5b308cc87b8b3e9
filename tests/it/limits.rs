//! Rate limit and circuit breaker, end to end: commands in trouble do not slow the rest, something in the way opens the
//! circuit, and both are reported.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bed::{Bed, command, until};
use crate::broker;
use crate::programs::{Programs, err, out, run};
use jiff::Timestamp;
use redeemer::config::Span;
use serde_json::{Value, json};

/// The program itself, on the configuration of a bed, with its log in a file.
pub(crate) struct Program {
    child: Child,
    pub admin: String,
    pub log: PathBuf,
}

impl Program {
    pub(crate) async fn start(bed: &Bed) -> Self {
        Self::start_with(bed, &[]).await
    }

    /// The same with these in its environment.
    pub(crate) async fn start_with(bed: &Bed, environment: &[(&str, &str)]) -> Self {
        let (address, log) = (bed.dir.join("admin.address"), bed.dir.join("program.log"));
        let _ = std::fs::remove_file(&address);
        let child = Command::new(env!("CARGO_BIN_EXE_redeemer"))
            .arg("--config")
            .arg(bed.config_file())
            .args(["run", "--with-parent", "--admin-address-file"])
            .arg(&address)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut program = Self { child, admin: String::new(), log };
        until("the admin port", async || {
            std::fs::read_to_string(&address).is_ok_and(|text| !text.is_empty())
        })
        .await;
        program.admin = std::fs::read_to_string(&address).unwrap().trim().to_owned();
        program
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap().text().await.unwrap()
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Waits until it consumes.
    pub(crate) async fn wait_ready(&self) {
        until("readiness", async || {
            let ready = reqwest::get(format!("http://{}/readyz", self.admin)).await;
            ready.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Ends it by SIGTERM, in good order.
    pub(crate) async fn stop(mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let child = &mut self.child;
        let status = tokio::task::block_in_place(|| child.wait()).unwrap();
        assert_eq!(status.code(), Some(0));
    }

    async fn notices(&self) -> Vec<String> {
        let status: Value = serde_json::from_str(&self.get("/status.json").await).unwrap();
        let notices = status["notices"].as_array().unwrap().iter();
        notices.map(|notice| notice["kind"].as_str().unwrap().to_owned()).collect()
    }

    /// Lines of the log with these words.
    fn logged(&self, words: &str) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap();
        log.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the program's log:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

pub(crate) async fn publish(bed: &Bed, prefix: &str, count: usize) {
    for nth in 0..count {
        let code = format!("{prefix}{nth}");
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_{code}"))).await;
    }
}

pub(crate) async fn all_redeemed(bed: &mut Bed, count: usize) {
    for _ in 0..count {
        assert_eq!(bed.next_event().await.gist(), "redeemed - USED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_throttled_never_lower_the_rate() {
    let mut bed = Bed::new().await;
    bed.faults(json!([{
        "coupon_prefix": "T", "operation": "use", "first_attempts": 2, "fault": {"kind": "status", "status": 429}
    }]));
    // One in eight.
    for part in 0..10 {
        publish(&bed, &format!("G{part}_"), 35).await;
        publish(&bed, &format!("T{part}_"), 5).await;
    }
    let program = Program::start(&bed).await;
    let throttled = r#"redeemer_responses_total{class="throttled"}"#;
    until("all throttled twice", async || {
        assert_eq!(program.metric("redeemer_rate_limit_used_ratio").await, 1.0);
        program.metric(throttled).await == 100.0
    })
    .await;
    all_redeemed(&mut bed, 400).await;
    assert_eq!(program.metric("redeemer_rate_limit_used_ratio").await, 1.0);
    assert_eq!(program.notices().await, Vec::<String>::new());
    assert!(program.logged("rate reduced").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_throttles_everything_is_reported_once() {
    let mut bed = Bed::new().await;
    bed.faults(json!([{"fault": {"kind": "status", "status": 429, "code": "FREQUENCY_LIMIT_EXCEED"}}]));
    publish(&bed, "C", 300).await;
    let program = Program::start(&bed).await;
    until("the rate reduced", async || program.metric("redeemer_rate_limit_used_ratio").await < 0.5).await;
    until("it is reported", async || !program.logged("rate reduced").is_empty()).await;
    assert_eq!(program.notices().await, ["rate_reduced"]);
    assert!(program.get("/").await.contains("Consuming at a reduced rate."));
    bed.faults(json!([]));
    all_redeemed(&mut bed, 300).await;
    until("the rate restored", async || program.metric("redeemer_rate_limit_used_ratio").await == 1.0).await;
    let reported = program.logged("rate reduced");
    assert_eq!(reported.len(), 1, "{reported:?}");
    for field in ["throttled_share", "calls_per_second", "429", "FREQUENCY_LIMIT_EXCEED", "request_id"] {
        assert!(reported[0].contains(field), "{field}: {reported:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_rejects_uses_opens_the_circuit() {
    let mut bed = Bed::new().await;
    publish(&bed, "WELL", 20).await;
    let program = Program::start(&bed).await;
    all_redeemed(&mut bed, 20).await;
    // A page of its own for every POST; queries pass.
    bed.faults(json!([{
        "operation": "use",
        "fault": {"kind": "status", "status": 403, "code": "PROXY", "message": "no", "signed": false}
    }]));
    publish(&bed, "C", 300).await;
    let open = r#"redeemer_circuit_open_cause{cause="unverified"}"#;
    until("the circuit open", async || program.metric(open).await == 1.0).await;
    let calls = bed.ledger()["attempts"].as_array().unwrap().len();
    assert!(reqwest::get(format!("http://{}/readyz", program.admin)).await.unwrap().status() == 503);
    until("it is reported", async || !program.logged("circuit open").is_empty()).await;
    until("the notice", async || program.notices().await == ["responses_unverified"]).await;
    bed.faults(json!([]));
    all_redeemed(&mut bed, 300).await;
    assert!(calls < 20 + 2 * 300, "{calls} calls before it opened");
    for (words, fields) in [
        ("circuit open", ["unverified", "share", "403", "PROXY"]),
        ("responses not verified", ["unverified", "share", "403", "PROXY"]),
    ] {
        let reported = program.logged(words);
        assert_eq!(reported.len(), 1, "{reported:?}");
        for field in fields {
            assert!(reported[0].contains(field), "{field}: {reported:?}");
        }
    }
    assert_eq!(program.metric(open).await, 0.0);
}

/// Answers that no API of the provider gives, or that nobody signed, from something in its place.
#[rstest::rstest]
#[case::redirect(302)]
#[case::request_timeout(408)]
#[case::unsigned_throttling(429)]
#[tokio::test(flavor = "multi_thread")]
async fn proxy_in_the_way_opens_the_circuit_and_ends_no_command(#[case] status: u16) {
    let mut bed = Bed::new().await;
    publish(&bed, "WELL", 20).await;
    let program = Program::start(&bed).await;
    all_redeemed(&mut bed, 20).await;
    bed.faults(json!([{"fault": {"kind": "status", "status": status, "signed": false}}]));
    publish(&bed, "C", 100).await;
    let open = r#"redeemer_circuit_open_cause{cause="unverified"}"#;
    until("the circuit open", async || program.metric(open).await == 1.0).await;
    assert_eq!(reqwest::get(format!("http://{}/readyz", program.admin)).await.unwrap().status(), 503);
    assert_eq!(bed.uses().len(), 20);
    // Also a 429: it is not the provider's own as long as nobody signed it.
    assert_eq!(program.metric(r#"redeemer_responses_total{class="throttled"}"#).await, 0.0);
    until("it is reported", async || !program.logged("circuit open").is_empty()).await;
    let reported = program.logged("circuit open");
    for field in ["share=", &format!("status={status}"), "calls_per_second="] {
        assert!(reported[0].contains(field), "{field}: {reported:?}");
    }
    bed.faults(json!([]));
    all_redeemed(&mut bed, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_5xx_after_a_start_holds_nothing_back() {
    let mut bed = Bed::new().await;
    bed.faults(json!([{"times": 1, "fault": {"kind": "html_502"}}]));
    publish(&bed, "C", 50).await;
    let program = Program::start(&bed).await;
    all_redeemed(&mut bed, 50).await;
    let arrivals: Vec<u64> = bed.ledger()["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["at_us"].as_u64().unwrap())
        .collect();
    let (first, tenth) = (arrivals[0], arrivals[10]);
    let held = Duration::from_micros(tenth - first);
    assert!(held < Duration::from_millis(900), "{held:?} from the first call to the tenth");
    assert!(program.logged("circuit open").is_empty());
}

/// Something in the way answers every POST in the provider's place; queries pass. Not one command has an outcome meanwhile,
/// readiness says why, and all are redeemed afterwards. `make soak` leaves it there for a minute: `FILTER_SECONDS=60`.
#[tokio::test(flavor = "multi_thread")]
async fn egress_filter_ends_no_command_and_loses_none() {
    const COMMANDS: usize = 500;
    let seconds = std::env::var("FILTER_SECONDS").map_or(12, |text| text.parse().unwrap());
    let mut bed = Bed::new().await;
    bed.leave_parked().await;
    publish(&bed, "C", COMMANDS).await;
    bed.faults(json!([{
        "operation": "use",
        "fault": {"kind": "status", "status": 403, "code": "FILTERED", "message": "no", "signed": false}
    }]));
    let begun = Instant::now();
    let program = Program::start(&bed).await;
    until("the circuit open", async || {
        program.metric(r#"redeemer_circuit_open_cause{cause="unverified"}"#).await == 1.0
    })
    .await;
    let ended = r#"redeemer_commands_settled_total{settlement="finished"}"#;
    let (mut samples, mut unready) = (0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        assert_eq!(program.metric(ended).await, 0.0, "a command ended behind the filter");
        let ready = reqwest::get(format!("http://{}/readyz", program.admin)).await.unwrap();
        samples += 1;
        if ready.status() == 503 {
            unready += 1;
            assert!(ready.text().await.unwrap().starts_with("[responses_unverified] "));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Queries pass, so that it may close for a moment and open again.
    assert!(unready * 10 >= samples * 8, "unready in {unready} of {samples} samples");
    assert!(bed.uses().is_empty());
    let lifted = Timestamp::now();
    bed.faults(json!([]));
    for _ in 0..COMMANDS {
        let reported = bed.next_event().await;
        assert_eq!(reported.gist(), "redeemed - USED");
        assert!(reported.event["time"].as_str().unwrap().parse::<Timestamp>().unwrap() >= lifted);
    }
    assert_eq!(bed.uses().len(), COMMANDS);
    until("readiness", async || {
        reqwest::get(format!("http://{}/readyz", program.admin)).await.unwrap().status() == 200
    })
    .await;
    let parked = &bed.config.broker.names.parked;
    assert_eq!(bed.ready(parked).await, 0);
}

/// The first call of a process goes alone; one that hangs is joined by another each second.
#[tokio::test(flavor = "multi_thread")]
async fn good_commands_pass_first_calls_that_hang() {
    let mut bed = Bed::new().await;
    bed.config.concurrency.per_coupon = 1;
    let hangs = |code: &str| json!({"coupon_code": code, "fault": {"kind": "slow", "ms": 60_000}});
    bed.faults(json!([hangs("H1"), hangs("H2"), hangs("H3")]));
    for code in ["H1", "H2", "H3"].into_iter().map(str::to_owned).chain((0..20).map(|nth| format!("G{nth}")))
    {
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_{code}"))).await;
    }
    let service = bed.start_unready().await;
    until("every good command redeemed", async || {
        service.metric(r#"redeemer_outcomes_total{outcome="redeemed",reason=""}"#).await == 20.0
    })
    .await;
    // No call that hangs had ended by then.
    assert_eq!(service.metric(r#"redeemer_attempts_total{operation="redeem",verdict="unknown"}"#).await, 0.0);
    service.stop().await;
}

/// A variable of the environment that many images set must not lead signed calls through somebody's proxy.
#[test]
fn proxy_of_the_environment_is_not_used() {
    let programs = Programs::start(broker::shared().uri());
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let uri = format!("http://{}", proxy.local_addr().unwrap());
    let mut check = programs.command(&["check"]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        check.env(name, &uri);
    }
    let output = run(check.env("NO_PROXY", "").env("no_proxy", ""));
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("payment API"), "{}", out(&output));
    let connected = proxy.accept();
    assert!(
        matches!(&connected, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        "{connected:?}"
    );
}

/// A command that waits for its query takes a place in the prefetch.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_commands_leave_half_the_prefetch_to_others() {
    let mut bed = Bed::new().await;
    bed.config.broker.prefetch = 8;
    bed.config.concurrency.commands = 8;
    // No query is made while the test runs.
    bed.config.retry.query_delay = Span(Duration::from_secs(60));
    bed.config.retry.in_process_max = Span(Duration::from_secs(120));
    bed.faults(json!([
        {"coupon_prefix": "FAIL", "operation": "use", "fault": {"kind": "status", "status": 500}},
    ]));
    for code in (0..12).map(|nth| format!("FAIL{nth}")).chain(["GOOD".to_owned()]) {
        bed.issue(&code, json!({}));
        bed.publish(&command(&code, &format!("USE_{code}"))).await;
    }
    let service = bed.start_unready().await;
    let reported = bed.next_event().await;
    assert_eq!(reported.gist(), "redeemed - USED");
    assert_eq!(reported.event["subject"], "GOOD");
    let delayed = r#"redeemer_delayed_retries_total{queue="10s",reason="unresolved"}"#;
    until("the others delayed", async || service.metric(delayed).await >= 8.0).await;
    service.stop().await;
}
